"""One page that holds the results of many commands: plots, pictures, tables, hardware."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vitfold.errors import DataError, missing
from vitfold.lab import plots
from vitfold.tools import results
from vitfold.tools.bench import DENSE

Results = Mapping[str, Any]

FIGURES = ("top1", "top1_low", "top1_high", "gflops")


@dataclass(frozen=True)
class Section:
    """What the page says of one file.

    plots: SVG, by caption.
    pictures: addresses of pictures, by method.
    """

    title: str
    about: dict[str, str]
    columns: list[str]
    rows: list[list[str]]
    plots: dict[str, str]
    pictures: dict[str, str]


def report(paths: Sequence[Path], title: str = "vitfold") -> str:
    """The page, whole: it loads nothing."""
    sections = [_read(path) for path in paths]
    template = resources.files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    try:
        from jinja2 import Environment
    except ImportError:
        raise missing("jinja2", "report") from None
    page = Environment(autoescape=True).from_string(template)
    return str(page.render(title=title, sections=sections))


def _read(path: Path) -> Section:
    found = results.read(path)
    try:
        return _section(path, found)
    except DataError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise DataError(f"{path} holds rows that vitfold did not write: {kind} {error}") from error


def _section(path: Path, found: Results) -> Section:
    rows = found["rows"]
    if not rows:
        raise DataError(f"{path} has no rows: there is nothing to report")
    hidden = ("counts", "changed")
    columns = [name for name in rows[0] if name not in hidden]
    pictures: dict[str, str] = found.get("pictures") or {}
    return Section(
        title=f"{found.get('command', 'results')}: {found.get('model', path.stem)}",
        about=_about(found),
        columns=columns,
        rows=[[_cell(row.get(name)) for name in columns] for row in rows],
        plots=_plots(rows),
        pictures={name: held for name, held in pictures.items() if held.startswith("data:image/")},
    )


def _about(found: Results) -> dict[str, str]:
    """What the figures are of: all that is neither a row nor a picture."""
    flat: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, Mapping) and name != "pictures":
            flat |= {f"{name}: {key}": str(held) for key, held in value.items()}
        elif name not in ("rows", "pictures"):
            flat[name] = str(value)
    return flat


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def _plots(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Accuracy against cost and against speed, and the tokens of every block."""
    if not all(name in rows[0] for name in FIGURES):
        return {}
    drawn = {"Accuracy and FLOPs": _pareto(rows, "gflops", "GFLOPs per image")}
    for name in rows[0]:
        if name.startswith("images_per_second_b"):
            batch = name.removeprefix("images_per_second_b")
            across = f"images per second, batch size {batch}"
            drawn[f"Accuracy and throughput, batch size {batch}"] = _pareto(rows, name, across)
    counts = {
        f"{row['method']} {float(row['flops']):.2f}": row["counts"]
        for row in rows
        if row.get("counts")
    }
    if counts:
        drawn["Tokens that leave each block"] = plots.lines(counts, "block", "tokens")
    return drawn


def _pareto(rows: Sequence[Mapping[str, Any]], cost: str, across: str) -> str:
    series: dict[str, list[plots.Point]] = {}
    for row in rows:
        if any(row.get(name) in (None, "") for name in (cost, *FIGURES[:3])):
            continue
        x, y, low, high = (float(row[name]) for name in (cost, *FIGURES[:3]))
        series.setdefault(str(row["method"]), []).append((x, y, low, high))
    dense = series.pop(DENSE, [None])[0]
    return plots.pareto(None, series, dense, across, "top-1")
