"""What the site has besides docs/: all that was measured, by machine, precision and runtime; the
tables of benchmarks/, with their rows as CSV; and how the house is built."""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
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
    measured = {name: json.loads(path.read_text("utf-8")) for name, path in _json_files()}
    groups = by_place(measured)
    for place, benchmarks in groups.items():
        every = [{"benchmark": name, **row} for name, found in benchmarks.items() for row in found]
        files.append(_generated(config, f"benchmarks/{csv_name(place)}", as_csv(flat(every))))
    files.append(_generated(config, "benchmarks/index.md", overview(groups, measured)))
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files.append(_generated(config, "ARCHITECTURE.md", text))
    return files


def _generated(config: Any, name: str, content: str | bytes) -> File:
    page = File.generated(config, name, content=content)
    hidden = name.startswith("benchmarks/") and name != "benchmarks/index.md"
    if hidden or not name.endswith(".md"):
        page.inclusion = page.inclusion.__class__.NOT_IN_NAV
    return page


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to what the site holds stay within it; others lead to the sources."""
    markdown = markdown.replace("](../benchmarks)", "](benchmarks/index.md)")
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


Place = tuple[str, str, str]
"""Machine, precision and runtime."""

Row = Mapping[str, Any]

Groups = dict[Place, dict[str, list[Row]]]
"""By place, the rows of every benchmark."""

ELSEWHERE = {"dense, eager torch": ("float32", "eager"), "dense, float32": ("float32", None)}
"""Candidates that are timed beside those of another precision or runtime."""


def _json_files() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "benchmarks").glob("*.json")):
        yield path.stem, path


def by_place(measured: Mapping[str, Row]) -> Groups:
    """The rows of all benchmarks, by where and how they were measured."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for name, result in measured.items():
        machine = result["machine"]
        words = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
        common = {key: result[key] for key in ("dtype", "runtime") if key in result}
        for row in result["rows"]:
            groups[(words, *precision_and_runtime(common | row))][name].append(row)
    return {place: groups[place] for place in sorted(groups)}


def precision_and_runtime(row: Row) -> tuple[str, str]:
    """What a row was measured in."""
    eight = row.get("int8") or "INT8" in str(row.get("case", ""))
    precision = "INT8" if eight else str(row.get("dtype", "float32"))
    runtime = str(row.get("runtime", "eager"))
    other, elsewhere = ELSEWHERE.get(str(row.get("candidate")), (precision, None))
    return other, elsewhere or runtime


def csv_name(place: Place) -> str:
    """What the file of a machine, a precision and a runtime is called."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(("measured", *place)).lower()) + ".csv"


def flat(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows with a column for every number, the heading first."""
    plain = [dict(_numbers(row)) for row in rows]
    columns = list(dict.fromkeys(column for row in plain for column in row))
    return [columns, *([str(row.get(column, "")) for column in columns] for row in plain)]


def _numbers(row: Row) -> Iterator[tuple[str, Any]]:
    for column, value in row.items():
        if isinstance(value, list) and len(value) == 3:
            low, median, high = value
            yield from ((column, median), (f"{column} low", low), (f"{column} high", high))
        elif value is not None and not isinstance(value, list | dict):
            yield column, value


def overview(groups: Groups, measured: Mapping[str, Row]) -> str:
    """The page of all measurements: a part for each place, with a table of every benchmark."""
    lines = ["# Every measurement", "", OVERVIEW, ""]
    for place, benchmarks in groups.items():
        machine, precision, runtime = place
        lines += [f"## {runtime}, {precision}: {machine}", ""]
        lines += [f"All of these as CSV: [{csv_name(place)}]({csv_name(place)}).", ""]
        for name, rows in benchmarks.items():
            lines += [f"### {name}", "", f"{command(measured[name])}: [{name}]({name}.md).", ""]
            lines += [*_table(rows), ""]
    return "\n".join(lines)


OVERVIEW = (
    "What `benchmarks/` has measured, by machine, precision and runtime; a click on a heading, or "
    "Enter on it, sorts a table. Of three figures the first is a median, and quartiles stand in "
    "brackets. `x dense` is the time of the dense model over that of a row, and `share of bound` "
    "how near a row is to taking tokens away for nothing."
)


def command(result: Row) -> str:
    """What was run."""
    words = str(result.get("command", "benchmarks/embedding.py"))
    return f"`{words if words.startswith('python') else f'python {words}'}`"


def _table(rows: list[Row]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row if _is_shown(rows, key)))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _is_shown(rows: list[Row], column: str) -> bool:
    """Ends of intervals and details are in the files."""
    values = [row.get(column) for row in rows]
    whole = any(isinstance(v, dict) or (isinstance(v, list) and len(v) != 3) for v in values)
    return not (whole or column.endswith(("_low", "_high", "_half", "_worst")))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        low, median, high = (f"{number:.4g}" for number in value)
        return f"{median} ({low} to {high})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(rows: list[list[str]]) -> str:
    """The same as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
