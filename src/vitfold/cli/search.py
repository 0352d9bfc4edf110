"""`vitfold search`: which patches merge in a model, found from labelled images."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.groups import grouped
from vitfold.cli.names import GROUPINGS, ITERATIONS, KEEP, PRUNE, SCOPES

SCORED = 32
"""How many images are scored at once."""


@grouped
def search(
    data: options.TrainingImages,
    model_options: options.ModelOptions,
    task: options.Task,
    model: options.ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folded model goes here.")],
    keep: Annotated[
        float | None,
        typer.Option(help="Share of patches that stay alone.", show_default=str(KEEP)),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(help="Share that goes around blocks, at most.", show_default=str(PRUNE)),
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="Share of the dense FLOPs, in place of --keep.")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="From 0, as 3,4,5.", show_default="all but the first quarter"),
    ] = None,
    scope: Annotated[str, typer.Option(help=f"{' or '.join(SCOPES)}: what shares are of.")] = (
        "global"
    ),
    grouping: Annotated[str, typer.Option(help=f"{' or '.join(GROUPINGS)}: what merges.")] = "runs",
    no_shortcut: Annotated[
        bool, typer.Option("--no-shortcut", help="What is pruned does not come back.")
    ] = False,
    iterations: Annotated[int, typer.Option(min=1, help="Batches to look at.")] = ITERATIONS,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = SCORED,
    seed: Annotated[int, typer.Option(min=0, help="Decides which images, in which order.")] = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False,
    workers: options.Workers = 0,
) -> None:
    """Find what merges, by Prune and Merge, and save the model folded so.

    Train it next, from where it is saved: `vitfold train DIR --distill soft ...`.
    """
    from vitfold.cli.images import shuffled_of
    from vitfold.cli.work.search import SCORES, save, search_with

    settings = {
        "keep": keep,
        "prune": prune,
        "flops": flops,
        "blocks": None if blocks is None else values.whole_numbers("--blocks", blocks),
        "scope": scope,
        "grouping": grouping,
        "shortcut": not no_shortcut,
        "iterations": iterations,
    }
    base = task.model(model_options, model)
    source = task.source(data, base)
    batches = shuffled_of(base, source, batch_size, iterations, seed, workers)
    save(model, base, search_with(base, batches, output / SCORES, resume, settings), output)
