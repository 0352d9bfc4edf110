"""Tables as Markdown has them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitfold.errors import DataError
from vitfold.tools import results

HERE = Path(__file__).parent
"""Where results lie."""


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def earlier(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of results; none where there is no such file."""
    try:
        rows: list[dict[str, Any]] = results.read(file)["rows"]
    except DataError:
        return []
    return rows


def spread(values: Sequence[float]) -> str:
    """A median, with the quartiles around it in brackets."""
    low, middle, high = values
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
