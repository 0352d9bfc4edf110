"""A search for what merges, as `vitfold search` and `vitfold train` run it."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.cli import show, values
from vitfold.cli.work.models import written
from vitfold.errors import MethodError, nearest
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone, fold
from vitfold.methods import PruneMerge
from vitfold.methods.prune_merge.structure import AROUND
from vitfold.saving.models import save_model
from vitfold.tools.prune_merge.search import ITERATIONS, search

SCORES = "scores.safetensors"
"""Beside the model: the scores so far, from which a search that was stopped goes on."""

OURS = ("model", "loader", "resume", "progress")
"""What a search takes from the command line in other ways."""


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
    known = [n for n in inspect.signature(search).parameters if n not in OURS]
    for name in options:
        if name not in known:
            raise MethodError(f"PruneMerge has no option {name!r}{nearest(name, known)}")
    if file is not None:
        values.directory(file.parent)
        if not resume:
            file.unlink(missing_ok=True)
    with show.bar("scoring patches", options.get("iterations", ITERATIONS)) as progress:
        return search(model, batches, resume=file, progress=progress, **options)


def save(name: str, base: nn.Module, method: PruneMerge, output: Path) -> None:
    """Show what was found, fold the model so and save it."""
    _show(name, base, method)
    save_model(fold(base, method), output)
    written(name, output)


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
