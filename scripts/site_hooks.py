"""What the site has besides docs/: the tables of benchmarks/, each with its rows as CSV, and how
the house is built."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SOURCES = "https://github.com/vitfold/vitfold/blob/main/"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        links = []
        for number, rows in enumerate(tables(text)):
            name = f"{path.stem}{f'-{number + 1}' if number else ''}.csv"
            files.append(_generated(config, f"benchmarks/{name}", as_csv(rows)))
            links.append(f"[{name}]({name})")
        text += f"\nAs CSV: {', '.join(links)}.\n" if links else ""
        files.append(_generated(config, f"benchmarks/{path.name}", text))
    for path in sorted((ROOT / "benchmarks").glob("*.png")):
        files.append(_generated(config, f"benchmarks/{path.name}", path.read_bytes()))
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files.append(_generated(config, "ARCHITECTURE.md", text))
    return files


def _generated(config: Any, name: str, content: str | bytes) -> File:
    page = File.generated(config, name, content=content)
    if name.startswith("benchmarks/") or not name.endswith(".md"):
        page.inclusion = page.inclusion.__class__.NOT_IN_NAV
    return page


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to what the site holds stay within it; others lead to the sources."""
    markdown = markdown.replace("](../benchmarks/", "](benchmarks/")
    markdown = re.sub(re.escape(f"]({SOURCES}docs/"), "](", markdown)
    return re.sub(r"\]\(\.\./([^)]*)\)", rf"]({SOURCES}\1)", markdown)


def tables(text: str) -> Iterator[list[list[str]]]:
    """The rows of every table of a page, the heading first."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
        elif rows:
            yield rows
            rows = []


def as_csv(rows: list[list[str]]) -> str:
    """The same as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
