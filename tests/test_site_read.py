"""The site as it is opened from a disk, in a browser: no server, and nothing from elsewhere."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import ARGUMENTS, WAIT, chromium
from support.pages import mkdocs


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Opens a page of the site; only files are read, and no script fails."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    site = tmp_path_factory.mktemp("site")
    mkdocs("build", "--quiet", "-d", site).check_returncode()
    wrong: list[str] = []

    def open_(page: str) -> Any:
        window.goto((site / page).as_uri())
        return window

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        window = browser.new_page(viewport={"width": 1280, "height": 900})
        window.set_default_timeout(WAIT * 1000)
        window.on("request", lambda request: wrong.append(request.url))
        window.on("pageerror", lambda error: wrong.append(str(error)))
        yield open_
        browser.close()
    local = ("file:", "data:", "about:", "blob:")
    assert [line for line in wrong if not line.startswith(local)] == []


def test_what_is_looked_for_is_found(opened: Any) -> None:
    page = opened("index.html")
    page.keyboard.press("/")
    page.keyboard.type("encoders that attend in windows")
    first = page.locator("a.md-search-result__link").first
    first.wait_for()
    first.click()
    page.wait_for_url("**/windowed-encoders.html*")


def test_links_lead_to_pages_and_not_to_folders(opened: Any) -> None:
    page = opened("index.html")
    page.locator("article a", has_text="exploring").first.click()
    page.wait_for_url("**/exploring.html")


@pytest.mark.parametrize("by_keyboard", [False, True])
def test_a_heading_sorts_its_column(opened: Any, by_keyboard: bool) -> None:
    page = opened("benchmarks/index.html")
    table = page.locator("article table", has=page.locator("th", has_text="x float32 dense")).first
    head = table.locator("th", has_text="ms")
    if by_keyboard:
        head.focus()
    for order in "descending", "ascending":
        page.keyboard.press("Enter") if by_keyboard else head.click()
        assert head.get_attribute("aria-sort") == order
        column = head.evaluate("head => head.cellIndex")
        rows = table.locator("tbody tr").all()
        shown = [float(row.locator("td").nth(column).inner_text()) for row in rows]
        assert len(shown) > 2
        assert shown == sorted(shown, reverse=order == "descending")


def test_places_without_a_figure_stay_last(opened: Any) -> None:
    page = opened("benchmarks/index.html")
    table = page.locator("article table", has=page.locator("th", has_text="x float32 dense")).first
    head = table.locator("th", has_text="share of bound")
    for _ in range(2):
        head.click()
        column = head.evaluate("head => head.cellIndex")
        cells = [row.locator("td").nth(column) for row in table.locator("tbody tr").all()]
        filled = [bool(cell.inner_text().strip()) for cell in cells]
        assert filled == sorted(filled, reverse=True)
        assert not all(filled)
