"""Analyses and their tables, as `vitfold analyze ...` shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.cli import options, show
from vitfold.cli.images import batches_of
from vitfold.cli.work.fold import folded_by
from vitfold.data import Source
from vitfold.folding.calls import folds
from vitfold.folding.fold import clone
from vitfold.lab import plots
from vitfold.lab.analysis.merged import merged_similarity
from vitfold.lab.analysis.positions import position_similarity
from vitfold.lab.analysis.sharpness import sharpness
from vitfold.lab.analysis.similarity import token_similarity
from vitfold.tools import results
from vitfold.tools.validate import Batch

__all__ = [
    "batches",
    "by_block",
    "finish",
    "gap",
    "merged_similarity",
    "plots",
    "rows",
    "sharpnesses",
    "show_positions",
    "token_similarity",
]


def batches(
    model: nn.Module, source: Source, limit: int | None, batch_size: int, workers: int
) -> list[Batch]:
    """All batches, which an analysis may go over more than once."""
    return list(batches_of(model, source, limit, batch_size, workers))


def sharpnesses(
    base: nn.Module, choice: options.Choice, batches: list[Batch], tolerance: float
) -> dict[str, float]:
    """The largest eigenvalue of the dense model's loss, and of the folded one's."""
    dense = clone(base)
    ours = folded_by(base, None, choice)
    figures: dict[str, float] = {}
    for name, model in {"dense": dense, str(folds(ours)[0].method): ours}.items():
        with show.bar(f"products with the Hessian, {name}", None) as progress:
            figures[name] = sharpness(model, batches, tolerance, progress)
    return figures


def show_positions(name: str, model: nn.Module, output: Path | None) -> None:
    """Means of the similarity of position embeddings, and a plot of it."""
    similar = position_similarity(model)
    height, width = similar.shape[:2]
    places = [(y, x) for y in _spread(height) for x in _spread(width)]
    maps = {f"row {y + 1}, column {x + 1}": similar[y, x].numpy() for y, x in places}
    show.table(
        f"{name}: cosine of two position embeddings",
        ["", "mean"],
        [["neighbours", f"{_neighbours(similar):.3f}"], ["all", f"{float(similar.mean()):.3f}"]],
    )
    plots.maps(maps, output)


def _neighbours(similar: Any) -> float:
    """The mean over patches that share an edge."""
    height, width = similar.shape[:2]
    pairs = [similar[y, x, y + 1, x] for y in range(height - 1) for x in range(width)]
    pairs += [similar[y, x, y, x + 1] for y in range(height) for x in range(width - 1)]
    return float(sum(map(float, pairs)) / max(len(pairs), 1))


def _spread(side: int) -> list[int]:
    """Three places along a side."""
    return sorted({side // 6, side // 2, side - 1 - side // 6})


def gap(value: float | None) -> float:
    """What a plot leaves out where there is no value."""
    return float("nan") if value is None else value


def by_block(title: str, series: Mapping[str, list[Any]]) -> None:
    """A table with a row for every block."""
    cells = [
        [str(block), *("" if v is None else f"{v:.3f}" for v in values)]
        for block, values in enumerate(zip(*series.values(), strict=True))
    ]
    show.table(title, ["block", *series], cells)


def rows(series: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Rows for a results file: a block each, with its figure of every series."""
    return [
        {"block": block, **dict(zip(series, values, strict=True))}
        for block, values in enumerate(zip(*series.values(), strict=True))
    ]


def finish(
    what: str, model: str, rows: list[dict[str, Any]], output: Path | None, file: Path | None
) -> None:
    """Say where the plot is, and write the rows where a file is asked for."""
    if output is not None:
        show.written(output)
    if file is not None:
        results.write(file, rows, {"command": f"analyze {what}", "model": model})
        show.written(file)
