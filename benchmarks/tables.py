"""Tables as Markdown has them."""

from collections.abc import Iterable, Sequence


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def spread(values: Sequence[float]) -> str:
    """A median, with the quartiles around it in brackets."""
    low, middle, high = values
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
