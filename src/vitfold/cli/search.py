"""`vitfold search`: which patches merge in a model, found from labelled images."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.images import shuffled_of
from vitfold.errors import MethodError, nearest
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone, fold
from vitfold.methods import PruneMerge
from vitfold.methods.prune_merge.structure import AROUND, GROUPINGS, SCOPES
from vitfold.saving.models import save_model
from vitfold.tools.prune_merge.search import ITERATIONS
from vitfold.tools.prune_merge.search import search as search_

SCORES = "scores.safetensors"
"""Beside the model: the scores so far, from which a search that was stopped goes on."""

OURS = ("model", "loader", "resume", "progress")
"""What a search takes from the command line in other ways."""

SCORED = 32
"""How many images are scored at once."""


@grouped
def search(
    data: options.TrainingImages,
    made: options.ModelOptions,
    task: options.Task,
    model: options.ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folded model goes here.")],
    keep: Annotated[
        float | None,
        typer.Option(help="Share of patches that stay alone.", show_default=str(PruneMerge.keep)),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            help="Share that goes around blocks, at most.", show_default=str(PruneMerge.prune)
        ),
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
    chosen = {
        "keep": keep,
        "prune": prune,
        "flops": flops,
        "blocks": None if blocks is None else values.whole_numbers("--blocks", blocks),
        "scope": scope,
        "grouping": grouping,
        "shortcut": not no_shortcut,
        "iterations": iterations,
    }
    base = task.model(made, model)
    source = task.source(data, base)
    batches = shuffled_of(base, source, batch_size, iterations, seed, workers)
    method = search_with(base, batches, output / SCORES, resume, chosen)
    _show(model, base, method)
    save_model(fold(base, method), output)
    show.written(output)


def search_with(
    model: nn.Module,
    batches: Iterable[Any],
    file: Path | None,
    resume: bool,
    options: Mapping[str, Any],
) -> PruneMerge:
    """A search with a bar, which goes on where it was stopped if it is to.

    options: what the search takes, by its own names.
    """
    known = [n for n in inspect.signature(search_).parameters if n not in OURS]
    for name in options:
        if name not in known:
            raise MethodError(f"PruneMerge has no option {name!r}{nearest(name, known)}")
    if file is not None:
        values.directory(file.parent)
        if not resume:
            file.unlink(missing_ok=True)
    with show.bar("scoring patches", options.get("iterations", ITERATIONS)) as progress:
        return search_(model, batches, resume=file, progress=progress, **options)


def _show(name: str, base: nn.Module, method: PruneMerge) -> None:
    rows = [
        [f"block {block}", str(max(group) + 1), str(group.count(AROUND)), str(len(group))]
        for block, group in method.structure.items()
    ]
    show.table(f"{name}, {method}", ["", "patches it sees", "go around", "of"], rows)
    dense = clone(base)
    whole = cost(find(dense))
    fold(dense, method)
    show.console.print(f"{cost(find(dense)) / whole:.1%} of the dense FLOPs")
