"""`vitfold analyze ...`: looking into a model."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.errors import DataError, MethodError

app = typer.Typer(
    help="Look into a model: how alike its tokens are, how sharp its minimum is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _plot(output: Path | None) -> Path | None:
    """Refuse a plot before the work, not after it."""
    if output is None:
        return None
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"--output {output.name!r}: expected .png, .svg or .pdf")
    if not output.parent.is_dir():
        raise DataError(f"--output {output}: there is no directory {output.parent}")
    from vitfold.lab import plots

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
    model_options: options.ModelOptions,
    model: options.ModelName = "digits",
    limit: options.Limit = 256,
    batch_size: BatchSize = 32,
    workers: options.Workers = 0,
    output: Output = None,
    results_file: options.ResultsFile = None,
) -> None:
    """Mean similarity of tokens before, inside and after the attention of every block."""
    from vitfold.cli.work import analyze as work

    base = model_options.image_model(model)
    batches = work.batches(base, data.source, limit, batch_size, workers)
    with show.bar("looking", len(batches)) as progress:
        means = work.token_similarity(base, batches, progress)
    series = {name: getattr(means, name) for name in ("before", "inside", "after")}
    work.by_block(f"{model}: mean cosine of two tokens", series)
    if output is not None:
        work.plots.lines(series, "block", "mean cosine of two tokens", output)
    work.finish("similarity", model, work.rows(series), output, results_file)


@app.command("merged-similarity")
@grouped
def merged_similarity(
    data: options.Images,
    model_options: options.ModelOptions,
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
    from vitfold.cli.work import analyze as work

    base = model_options.image_model(model)
    batches = work.batches(base, data.source, limit, batch_size, workers)
    numbers = values.whole_numbers("--r", r)
    if min(numbers) < 1:
        raise MethodError(f"--r {r}: expected numbers from 1 up, where something merges")
    with show.bar("merging", len(batches) * len(numbers)) as progress:
        means = work.merged_similarity(
            base, batches, numbers, method or "tome", values.parse(method_kwargs), progress
        )
    series = {f"r={r}": values for r, values in means.items()}
    work.by_block(f"{model}: mean cosine of merged pairs", series)
    if output is not None:
        gaps = {name: [work.gap(value) for value in values] for name, values in series.items()}
        work.plots.lines(gaps, "block", "mean cosine of merged pairs", output)
    work.finish("merged-similarity", model, work.rows(series), output, results_file)


@app.command()
@grouped
def sharpness(
    choice: options.Choice,
    data: options.Images,
    model_options: options.ModelOptions,
    model: options.ModelName = "digits",
    limit: options.Limit = 128,
    batch_size: BatchSize = 32,
    workers: options.Workers = 0,
    tolerance: Annotated[float, typer.Option(help="Relative, of the eigenvalue.")] = 0.01,
    results_file: options.ResultsFile = None,
) -> None:
    """The largest eigenvalue of the Hessian of the loss, before and after folding."""
    from vitfold.cli.work import analyze as work

    base = model_options.image_model(model)
    batches = work.batches(base, data.source, limit, batch_size, workers)
    figures = work.sharpnesses(base, choice, batches, tolerance)
    dense = figures["dense"]
    rows = [{"model": name, "largest_eigenvalue": value} for name, value in figures.items()]
    cells = [[name, f"{value:.1f}", f"{value / dense:.2f}"] for name, value in figures.items()]
    show.table(f"{model}: sharpness", ["", "largest eigenvalue", "x dense"], cells)
    work.finish("sharpness", model, rows, None, results_file)


@app.command()
@grouped
def positions(
    model_options: options.ModelOptions,
    model: options.ModelName = "digits",
    output: Output = Path("positions.png"),
) -> None:
    """Similarity of position embeddings: a map for some patches of the grid."""
    from vitfold.cli.work import analyze as work

    work.show_positions(model, model_options.image_model(model), output)
    if output is not None:
        show.written(output)
