"""`vitfold analyze ...`: looking into a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.images import batches_of
from vitfold.errors import DataError, MethodError
from vitfold.folding.calls import folds
from vitfold.folding.fold import clone
from vitfold.lab import plots
from vitfold.lab.analysis import merged as merged_
from vitfold.lab.analysis import positions as positions_
from vitfold.lab.analysis import sharpness as sharpness_
from vitfold.lab.analysis import similarity as similarity_
from vitfold.tools import results
from vitfold.tools.validate import Batch

app = typer.Typer(
    help="Look into a model: how alike its tokens are, how sharp its minimum is.",
    no_args_is_help=True,
)


def _plot(output: Path | None) -> Path | None:
    """Refuse a plot before the work, not after it."""
    if output is None:
        return None
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"--output {output.name!r}: expected .png, .svg or .pdf")
    if not output.parent.is_dir():
        raise DataError(f"--output {output}: there is no directory {output.parent}")
    plots.pyplot()
    return output


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A plot: .png, .svg or .pdf.", callback=_plot),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1)]


@app.command()
@grouped
def similarity(
    data: options.Images,
    made: options.Made,
    model: options.ModelName = "digits",
    limit: options.Limit = 256,
    batch_size: BatchSize = 32,
    workers: options.Workers = 0,
    output: Output = None,
    results_file: options.ResultsFile = None,
) -> None:
    """Mean similarity of tokens before, inside and after the attention of every block."""
    base = made.image_model(model)
    batches: list[Batch] = list(batches_of(base, data.source, limit, batch_size, workers))
    with show.bar("looking", len(batches)) as progress:
        found = similarity_.token_similarity(base, batches, progress)
    series = {name: getattr(found, name) for name in ("before", "inside", "after")}
    _by_block(f"{model}: mean cosine of two tokens", series)
    if output is not None:
        plots.lines(series, "block", "mean cosine of two tokens", output)
    _finish("similarity", model, _rows(series), output, results_file)


@app.command("merged-similarity")
@grouped
def merged_similarity(
    data: options.Images,
    made: options.Made,
    model: options.ModelName = "digits",
    method: options.MethodName = None,
    r: Annotated[
        str, typer.Option("--r", help="Tokens per block, one or more: 4,8,16.")
    ] = "4,8,16",
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    limit: options.Limit = 256,
    batch_size: BatchSize = 32,
    workers: options.Workers = 0,
    output: Output = None,
    results_file: options.ResultsFile = None,
) -> None:
    """Mean similarity of the tokens that merge with each other, against r."""
    base = made.image_model(model)
    batches: list[Batch] = list(batches_of(base, data.source, limit, batch_size, workers))
    asked = values.whole_numbers("--r", r)
    if min(asked) < 1:
        raise MethodError(f"--r {r}: expected numbers from 1 up, where something merges")
    with show.bar("merging", len(batches) * len(asked)) as progress:
        found = merged_.merged_similarity(
            base, batches, asked, method or "tome", values.parse(method_kwargs), progress
        )
    series = {f"r={r}": values for r, values in found.items()}
    _by_block(f"{model}: mean cosine of merged pairs", series)
    if output is not None:
        gaps = {name: [_gap(value) for value in values] for name, values in series.items()}
        plots.lines(gaps, "block", "mean cosine of merged pairs", output)
    _finish("merged-similarity", model, _rows(series), output, results_file)


@app.command()
@grouped
def sharpness(
    choice: options.Choice,
    data: options.Images,
    made: options.Made,
    model: options.ModelName = "digits",
    limit: options.Limit = 128,
    batch_size: BatchSize = 32,
    workers: options.Workers = 0,
    tolerance: Annotated[float, typer.Option(help="Relative, of the eigenvalue.")] = 0.01,
    results_file: options.ResultsFile = None,
) -> None:
    """The largest eigenvalue of the Hessian of the loss, before and after folding."""
    base = made.image_model(model)
    batches: list[Batch] = list(batches_of(base, data.source, limit, batch_size, workers))
    dense_model = clone(base)
    ours = options.folded_by(base, None, choice)
    both: dict[str, nn.Module] = {"dense": dense_model, str(folds(ours)[0].method): ours}
    values: dict[str, float] = {}
    for name, each in both.items():
        with show.bar(f"products with the Hessian, {name}", None) as progress:
            values[name] = sharpness_.sharpness(each, batches, tolerance, progress)
    dense = values["dense"]
    rows = [{"model": name, "largest_eigenvalue": value} for name, value in values.items()]
    cells = [[name, f"{value:.1f}", f"{value / dense:.2f}"] for name, value in values.items()]
    show.table(f"{model}: sharpness", ["", "largest eigenvalue", "x dense"], cells)
    _finish("sharpness", model, rows, None, results_file)


@app.command()
@grouped
def positions(
    made: options.Made,
    model: options.ModelName = "digits",
    output: Output = Path("positions.png"),
) -> None:
    """Similarity of position embeddings: a map for some patches of the grid."""
    base = made.image_model(model)
    found = positions_.position_similarity(base)
    height, width = found.shape[:2]
    places = [(y, x) for y in _spread(height) for x in _spread(width)]
    maps = {f"row {y + 1}, column {x + 1}": found[y, x].numpy() for y, x in places}
    show.table(
        f"{model}: cosine of two position embeddings",
        ["", "mean"],
        [["neighbours", f"{_neighbours(found):.3f}"], ["all", f"{float(found.mean()):.3f}"]],
    )
    plots.maps(maps, output)
    if output is not None:
        show.written(output)


def _neighbours(found: Any) -> float:
    """The mean over patches that share an edge."""
    height, width = found.shape[:2]
    pairs = [found[y, x, y + 1, x] for y in range(height - 1) for x in range(width)]
    pairs += [found[y, x, y, x + 1] for y in range(height) for x in range(width - 1)]
    return float(sum(map(float, pairs)) / max(len(pairs), 1))


def _spread(side: int) -> list[int]:
    """Three places along a side."""
    return sorted({side // 6, side // 2, side - 1 - side // 6})


def _gap(value: float | None) -> float:
    return float("nan") if value is None else value


def _by_block(title: str, series: Mapping[str, list[Any]]) -> None:
    rows = [
        [str(block), *("" if v is None else f"{v:.3f}" for v in values)]
        for block, values in enumerate(zip(*series.values(), strict=True))
    ]
    show.table(title, ["block", *series], rows)


def _rows(series: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        {"block": block, **dict(zip(series, values, strict=True))}
        for block, values in enumerate(zip(*series.values(), strict=True))
    ]


def _finish(
    what: str, model: str, rows: list[dict[str, Any]], output: Path | None, file: Path | None
) -> None:
    if output is not None:
        show.written(output)
    if file is not None:
        results.write(file, rows, {"command": f"analyze {what}", "model": model})
        show.written(file)
