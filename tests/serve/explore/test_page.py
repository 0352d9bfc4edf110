"""The page in a browser, as people use it: by hand, by keyboard, on a phone, in the dark."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.browser import ARGUMENTS, WAIT, chromium, explored
from support.uploads import mishaps, scene, stored


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explore")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    chromium()
    with explored(folder, "--max-bytes", "100000", "--max-pixels", "90000") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page in a window; nothing is fetched from elsewhere, and nothing goes wrong."""
    contexts, elsewhere = [], []

    def open_(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        context.set_default_timeout(WAIT * 1000)
        page = context.new_page()
        page.on("request", lambda request: elsewhere.append(request.url))
        page.on("pageerror", lambda error: elsewhere.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#vf-pictures figure:nth-of-type(2) img")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


def captions(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#vf-pictures figcaption").all_inner_texts()]


def shows(page: Any, selector: str, text: str) -> None:
    """Waits until a part of the page shows a text."""
    page.locator(selector, has_text=text).first.wait_for()


def choose(page: Any, selector: str, name: str) -> None:
    page.locator(f"{selector} input").click()
    page.locator(selector).get_by_role("option", name=name, exact=True).click()


def test_load_drag_scrub_compare(opened: Any) -> None:
    page = opened()
    assert captions(page)[1].startswith("ward at 0.6: ")
    assert page.locator("#vf-pictures img").nth(1).get_attribute("alt")
    page.locator("#vf-budget input[type=range]").fill("0.8")
    shows(page, "#vf-pictures", "ward at 0.8: ")
    shows(page, "#vf-answers", "share of the dense FLOPs")
    before = page.locator("#vf-pictures img").nth(1).get_attribute("src")
    page.locator("#vf-block input[type=range]").fill("0")
    shows(page, "#vf-pictures", "tokens leave block 0")
    assert page.locator("#vf-pictures img").nth(1).get_attribute("src") != before
    choose(page, "#vf-other", "drop")
    shows(page, "#vf-pictures", "drop at 0.8: ")
    assert len(captions(page)) == 3
    shows(page, "#vf-costs", "drop at 0.8")
    headings = page.locator("#vf-answers h3").all_inner_texts()
    assert headings == ["dense", "ward at 0.8", "drop at 0.8"]
    choose(page, "#vf-method", "tome")
    shows(page, "#vf-pictures", "tome at 0.8: ")
    page.locator("#vf-budget input[type=range]").fill("0.3")
    shows(page, "#vf-pictures [role=alert]", "flops=0.3 cannot be reached")


def test_copy(opened: Any, address: str) -> None:
    page = opened()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    for name, expected in (
        ("python", 'vitfold.fold(model, "ward", flops=0.6)'),
        ("command", "vitfold bench model.py:build --method ward --flops 0.6 --runtime eager -b 1"),
    ):
        page.evaluate("navigator.clipboard.writeText('')")
        page.locator(f"#vf-copy-{name}").click()
        page.wait_for_function("async () => (await navigator.clipboard.readText()) !== ''")
        assert expected in page.evaluate("navigator.clipboard.readText()")
    shows(page, "#vf-copied", "Copied.")


def test_measure(opened: Any) -> None:
    page = opened()
    shows(page, "#vf-speeds", "Not measured yet")
    page.locator("#vf-measure").click()
    shows(page, "#vf-speeds", "times as fast")
    assert page.locator("#vf-speeds tbody tr").count() == 2


def test_upload_of_good_and_bad(opened: Any, folder: Path) -> None:
    page = opened()
    drop = page.locator("#vf-file input[type=file]")

    def upload(name: str, data: bytes) -> None:
        drop.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})

    upload("mine.png", stored(scene(), "PNG"))
    shows(page, "#vf-pictures", "mine.png, as the model sees it")
    upload("broken.png", stored(scene(), "PNG")[:60])
    shows(page, "#vf-said", "broken.png cannot be read")
    upload("many.png", stored(scene(400, 400), "PNG"))
    shows(page, "#vf-said", "many.png has 400 x 400 pixels")
    assert captions(page)[0].startswith("mine.png")
    upload("large.bmp", stored(scene(200, 200), "BMP"))
    page.get_by_text(re.compile("maximum", re.IGNORECASE)).first.wait_for()
    upload("other.webp", stored(scene(seed=3), "WEBP"))
    shows(page, "#vf-pictures", "other.webp, as the model sees it")
    assert page.locator("#vf-said [role=alert]").count() == 0
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not {"mine.png", "broken.png", "many.png", "other.webp"} & set(names)


def test_examples_and_sliders_by_keyboard(opened: Any) -> None:
    page = opened()
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.closest('[id^=vf-]')?.id ?? 'elsewhere'")
        )
    controls = ["file", "examples", "budget", "method", "other", "block", "runtime", "batch"]
    controls += ["measure", "copy-python", "copy-command"]
    assert {f"vf-{name}" for name in controls} <= set(reached)
    page.locator("#vf-budget input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    shows(page, "#vf-pictures", "ward at 0.62: ")
    page.locator("#vf-examples button").nth(1).focus()
    page.keyboard.press("Enter")
    shows(page, "#vf-pictures", "tower, as the model sees it")


def test_on_a_phone_in_the_dark(opened: Any) -> None:
    page = opened(
        viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True, has_touch=True
    )
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    boxes = [page.locator(f"#vf-{name}").bounding_box() for name in ("budget", "block")]
    assert boxes[0]["y"] < boxes[1]["y"]  # one column
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = opened().evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150
    assert sum(map(int, re.findall(r"\d+", light)[:3])) > 600


def test_every_control_has_a_name(opened: Any) -> None:
    page = opened()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, button, textarea, select')].filter(
          (e) => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.innerText.trim()
            || e.getAttribute('aria-labelledby') || e.title)).map((e) => e.outerHTML)"""
    )
    assert nameless == []


# What somebody sends who does not use the page


class Sender:
    """Sends files as the page does."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        config = json.loads(self.get("/config"))
        [file] = [c["id"] for c in config["components"] if c["props"].get("elem_id") == "vf-file"]
        self.handler = next(
            d["id"] for d in config["dependencies"] if [file, "upload"] in map(list, d["targets"])
        )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path, timeout=WAIT) as answer:
            return str(answer.read().decode())

    def post(self, path: str, data: bytes, kind: str) -> Any:
        request = urllib.request.Request(self.address + path, data, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.loads(answer.read())

    def upload(self, name: str, data: bytes) -> str:
        """Where the file lies there."""
        mark = uuid4().hex
        disposition = f'form-data; name="files"; filename="{name}"'
        head = f"--{mark}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body = head + data + f"\r\n--{mark}--\r\n".encode()
        [path] = self.post("/gradio_api/upload", body, f"multipart/form-data; boundary={mark}")
        return str(path)

    def handed(self, path: str) -> str:
        """What the page says once it has been handed a file."""
        session = uuid4().hex
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = {"data": [file, None], "fn_index": self.handler, "session_hash": session}
        self.post("/gradio_api/queue/join", json.dumps(data).encode(), "application/json")
        return self.get(f"/gradio_api/queue/data?session_hash={session}")


def test_broken_files_by_themselves(address: str, opened: Any) -> None:
    sender = Sender(address)
    for number, data in enumerate(mishaps(40, seed=3)):
        said = sender.handed(sender.upload(f"file{number}.png", data))
        assert "process_completed" in said
        assert "Traceback" not in said
    assert captions(opened())[1].startswith("ward at 0.6: ")  # the page goes on


def test_other_files_of_the_machine_are_neither_shown_nor_deleted(
    address: str, folder: Path
) -> None:
    kept = folder / "kept.png"
    kept.write_bytes(stored(scene(), "PNG"))
    said = Sender(address).handed(str(kept))
    assert '"success":false' in said.replace(" ", "")
    assert "model sees it" not in said
    assert kept.exists()
    with pytest.raises(urllib.error.HTTPError):
        Sender(address).get(f"/gradio_api/file={kept}")
