"""The report page: the results of many commands as plots, pictures and tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vitfold.errors import DataError, missing
from vitfold.lab import plots
from vitfold.lab.report.columns import GFLOPS, cell, header
from vitfold.lab.styles import BASELINES
from vitfold.tools import results
from vitfold.tools.baselines import DENSE

Results = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

UPWARDS = {
    "top1": "Accuracy",
    "agreement": "Agreement",
    "cosine": "Cosine of embeddings",
    "dense_cosine": "Cosine of dense features",
}
"""What is plotted against cost and speed, and what that is called: the first that there is."""

HIDDEN = ("counts", "changed", "sweep")
"""What rows hold for programs."""


@dataclass(frozen=True)
class Section:
    """One file on the page.

    plots: SVG, by caption.
    pictures: addresses of pictures, by method.
    busy: whether a speed in it is impossible.
    """

    title: str
    about: dict[str, str]
    columns: list[str]
    rows: list[list[str]]
    plots: dict[str, str]
    pictures: dict[str, str]
    busy: bool


def report(paths: Sequence[Path], title: str = "vitfold") -> str:
    """The page, whole: it loads nothing."""
    sections = [_read(path) for path in paths]
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    try:
        from jinja2 import Environment
    except ImportError:
        raise missing("jinja2", "report") from None
    page = Environment(autoescape=True).from_string(template)
    return str(page.render(title=title, sections=sections, baselines=BASELINES))


def _read(path: Path) -> Section:
    content = results.read(path)
    try:
        return _section(path, content)
    except DataError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise DataError(f"{path} holds rows that vitfold did not write: {kind} {error}") from error


def _section(path: Path, content: Results) -> Section:
    rows = content["rows"]
    if not rows:
        raise DataError(f"{path} has no rows: there is nothing to report")
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in HIDDEN]
    pictures: dict[str, str] = content.get("pictures") or {}
    return Section(
        title=f"{content.get('command', 'results')}: {content.get('model', path.stem)}",
        about=_about(content),
        columns=[header(name) for name in names],
        rows=[[cell(name, row.get(name)) for name in names] for row in rows],
        plots=dict(_plots(rows)),
        pictures={name: url for name, url in pictures.items() if url.startswith("data:image/")},
        busy=any(_is_busy(row) for row in rows),
    )


def _is_busy(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("steady_b") and str(value) == "False" for name, value in row.items())


def _about(content: Results) -> dict[str, str]:
    """What the figures are of: all that is neither a row nor a picture."""
    flat: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and name != "pictures":
            flat |= {f"{name}: {key}": str(entry) for key, entry in value.items()}
        elif name not in ("rows", "pictures"):
            flat[name] = str(value)
    return flat


def _plots(rows: Rows) -> Iterator[tuple[str, str]]:
    """Accuracy, or fidelity where there is none, against cost and against speed, and the tokens of
    every block, by caption."""
    up = next((name for name in UPWARDS if set(_ends(name)) <= rows[0].keys()), None)
    if up is None or "gflops" not in rows[0]:
        return
    yield f"{UPWARDS[up]} and FLOPs", _pareto(rows, "gflops", f"{GFLOPS} per image", up)
    for name in rows[0]:
        if name.startswith("images_per_second_b"):
            batch = name.removeprefix("images_per_second_b")
            across = f"images per second, batch size {batch}"
            caption = f"{UPWARDS[up]} and throughput, batch size {batch}"
            yield caption, _pareto(rows, name, across, up)
    if counts := _counts(rows):
        yield "Tokens that leave each block", plots.tokens(counts)


def _counts(rows: Rows) -> dict[str, dict[str, Sequence[float]]]:
    """How many tokens are left after each block, by method and by share of the FLOPs."""
    counts: dict[str, dict[str, Sequence[float]]] = {}
    for row in rows:
        if row.get("counts"):
            share = float(row["flops"])
            counts.setdefault(str(row["method"]), {})[f"{share:.2f}"] = row["counts"]
    return counts


def _ends(name: str) -> tuple[str, str, str]:
    """A figure, and the ends of its interval."""
    return name, f"{name}_low", f"{name}_high"


def _pareto(rows: Rows, cost: str, across: str, up: str) -> str:
    series: dict[str, list[plots.Point]] = {}
    for row in rows:
        names = (cost, *_ends(up))
        if any(row.get(name) in (None, "") for name in names):
            continue
        x, y, low, high = (float(row[name]) for name in names)
        series.setdefault(str(row["method"]), []).append((x, y, low, high))
    dense = series.pop(DENSE, [None])[0]
    return plots.pareto(None, series, dense, across, header(up))
