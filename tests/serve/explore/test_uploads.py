"""What is uploaded: a picture, or a line that says what is wrong with it."""

import asyncio
import gc
import struct
import weakref
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import small
from support.uploads import FORMATS, mishaps, scene, stored

from vitfold.errors import DataError
from vitfold.serve.explore.explorer import Explorer, Photograph, Pick
from vitfold.serve.explore.lines import Origin
from vitfold.serve.explore.page import Page
from vitfold.serve.explore.uploads import Limits, decoded, name_of, read_upload

LIMITS = Limits(bytes=200_000, pixels=100_000)


def refused(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(DataError) as error:
        decoded(data, "a.png", limits)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("a.png ")
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_of_photographs_are_read(kind: str) -> None:
    picture = decoded(stored(scene(), kind), "a", LIMITS)
    assert (picture.mode, picture.size) == ("RGB", (60, 40))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16", "1"])
def test_modes_of_photographs_are_read(mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((40, 60), 2**15, np.uint16))
    else:
        picture = scene().convert(mode)
    data = stored(picture, "JPEG" if mode == "CMYK" else "PNG")
    assert decoded(data, "a", LIMITS).mode == "RGB"


def test_a_photograph_is_turned_as_its_camera_says() -> None:
    notes = Image.Exif()
    notes[0x0112] = 6
    data = stored(scene(), "JPEG", exif=notes)
    assert decoded(data, "a", LIMITS).size == (40, 60)


def test_of_an_animation_the_first_frame_counts() -> None:
    first, second = scene(seed=1), scene(seed=2)
    moving = stored(first, "GIF", save_all=True, append_images=[second])
    pictures = [decoded(data, "a", LIMITS) for data in (moving, stored(first, "GIF"))]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says that it is very large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [400, 20_000, 2**31 - 1])
def test_pixels_are_counted_before_they_are_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: 1 / 0)  # nothing is decoded
    assert "pixels: at most 0.1 million are taken" in refused(bomb(side, side))


def test_bytes_are_counted_before_they_are_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(10**9)
    monkeypatch.setattr("builtins.open", lambda *_: 1 / 0)
    with pytest.raises(DataError, match=r"large\.png has 1000 MB: at most 0\.2 are taken"):
        read_upload(path, LIMITS)


def test_formats_that_start_programs_are_refused() -> None:
    file = BytesIO()
    scene().save(file, "EPS")
    assert "it is no JPEG, PNG" in refused(file.getvalue())
    assert "it is no JPEG, PNG" in refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    assert refused(b"") == "a.png is empty: give a picture"
    assert "it is no JPEG" in refused(b"hello")
    with pytest.raises(DataError, match=r"nothing\.png cannot be read"):
        read_upload(tmp_path / "nothing.png", LIMITS)


def test_limits_are_numbers_from_one() -> None:
    with pytest.raises(DataError, match="--max-pixels 0: expected a number from 1 up"):
        Limits(pixels=0)


def test_names_in_messages_are_short_and_of_one_line() -> None:
    assert name_of(Path("a\nb\x00.png")) == "a?b?.png"
    assert len(name_of(Path("x" * 300))) == 60


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """The handlers of a page, whose uploads lie in a folder."""
    page = Page(Explorer(small.vit().float(), LIMITS), Origin("m"), [("a scene", scene())])
    page.folder = tmp_path
    return page


def survives(page: Page, count: int, seed: int) -> None:
    """Whatever is uploaded is a photograph or a line that says why not; no file stays, and the
    page goes on."""
    assert page.folder is not None
    before, read = page.example(0), 0
    for number, data in enumerate(mishaps(count, seed)):
        file = page.folder / f"{number}.png"
        file.write_bytes(data)
        photograph, cleared, said = page.receive(str(file), before)
        assert cleared is None
        assert not file.exists()
        assert "\n" not in said
        assert len(said) < 400
        assert (photograph is before) == (f">{number}.png " in said)
        read += not said
    assert 0 < read < count
    assert "ward at 0.6" in page.redraw(before, "ward", 0.6)[0]


def test_broken_files_have_clear_errors(page: Page) -> None:
    survives(page, 200, seed=1)


@pytest.mark.exhaustive
def test_ten_thousand_broken_files_have_clear_errors(page: Page) -> None:
    survives(page, 10_000, seed=2)


def test_what_breaks_a_decoder_is_told_too(page: Page, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more\nmemory")

    monkeypatch.setattr("vitfold.serve.explore.explorer.read_upload", fail)
    (tmp_path / "a.png").write_bytes(b"a")
    _, _, said = page.receive(str(tmp_path / "a.png"), None)
    assert "this file cannot be read: no more<" in said
    assert not (tmp_path / "a.png").exists()


def test_files_elsewhere_are_neither_read_nor_deleted(page: Page, tmp_path: Path) -> None:
    page.folder = tmp_path / "uploads"
    kept = tmp_path / "kept.png"
    kept.write_bytes(stored(scene(), "PNG"))
    for path in (kept, page.folder / ".." / "kept.png"):
        photograph, _, said = page.receive(str(path), None)
        assert photograph is None
        assert "this is no upload" in said
    assert kept.exists()
    page.folder = None
    assert "this is no upload" in page.receive(str(kept), None)[2]


def test_a_photograph_goes_when_the_next_one_comes(tmp_path: Path, monkeypatch) -> None:
    """From the page's own memory of a visitor too, and with it all that was made of it."""
    pytest.importorskip("gradio")
    from gradio.state_holder import SessionState

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    explorer = Explorer(small.vit().float())
    page = Page(explorer, Origin("m"), [("a scene", scene())])
    page.folder = tmp_path.resolve()
    blocks = page.build()
    [receive] = [each for each in blocks.fns.values() if each.fn == page.receive]
    state = SessionState(blocks)

    def uploaded(seed: int) -> weakref.ref[Photograph]:
        file = tmp_path / "a.png"
        file.write_bytes(stored(scene(seed=seed), "PNG"))
        inputs = [{"path": str(file), "meta": {"_type": "gradio.FileData"}}, None]
        asyncio.run(blocks.process_api(receive, inputs, state=state))
        [photograph] = [state[key] for key in state.state_data]
        explorer.picture(photograph, Pick("tome", 0.6), 1)
        return weakref.ref(photograph)

    first, second = uploaded(1), uploaded(2)
    gc.collect()
    assert first() is None
    assert second() is not None
    assert len(explorer._albums) == 1
