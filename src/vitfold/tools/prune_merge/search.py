"""`PruneMerge.search`: the method for a model, from its gradients on labelled images."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitfold.errors import DataError, MethodError
from vitfold.folding.families import find
from vitfold.methods.checks import check_blocks, check_number, check_share, check_whole
from vitfold.methods.prune_merge.method import PruneMerge
from vitfold.tools.measure import Progress
from vitfold.tools.prune_merge.rates import fit_rates, keeping
from vitfold.tools.prune_merge.scores import Scores
from vitfold.tools.validate import Batch

ITERATIONS = 250
"""Batches whose scores are averaged, where nobody says how many."""


def search(
    model: nn.Module,
    loader: Iterable[Any],
    keep: float | None = None,
    prune: float | None = None,
    blocks: Sequence[int] | None = None,
    scope: str = "global",
    grouping: str = "runs",
    shortcut: bool = True,
    iterations: int = ITERATIONS,
    *,
    flops: float | None = None,
    resume: Path | str | None = None,
    progress: Progress = lambda: None,
) -> PruneMerge:
    """Score the patches of a model by its gradients on labelled images, and find what merges.

    The model itself stays as it is. The same batches in the same order give the same method.

    loader: batches of images and labels; begun again where it is shorter than the iterations, and
        where it can be.
    keep: the share of patches that stay alone (0.6 where `flops` is not given).
    prune: the share that goes around blocks, at most; less where more stay alone. Where it is not
        given 0.1, and more only if `flops` cannot be reached without.
    blocks: which ones to compress; all but the first quarter where it is not given.
    iterations: how many batches.
    flops: the share of the dense FLOPs to reach, in place of `keep`.
    resume: a file for the scores so far, from which a search of the same begins or goes on.
    """
    check_whole("iterations", iterations, least=1)
    depth = find(model).depth
    some = list(range(depth // 4, depth)) if blocks is None else blocks
    usual = PruneMerge.prune if prune is None else prune
    every = PruneMerge(0.0, usual, some, scope, grouping, shortcut)  # type: ignore[arg-type]
    check_blocks(every.blocks, depth)
    if not every.blocks:
        raise MethodError(f"blocks={blocks!r}: expected at least one block")
    method = _rated(every, keep, prune, flops)
    batches = _repeated(loader, iterations)
    first = next(batches, None)
    if first is None:
        raise DataError("no images to score patches on: the loader is empty")
    grid = _grid(model, first[0])
    scores = Scores.start(model, every.blocks, grid, first, iterations, resume)
    scores.gather(model, every.blocks, itertools.chain([first], batches), progress)
    scored = replace(method, grid=grid, scores=scores.rounded())
    return scored if flops is None else fit_rates(model, scored, flops, first[0][:1], prune is None)


def _rated(
    every: PruneMerge, keep: float | None, prune: float | None, flops: float | None
) -> PruneMerge:
    """The method with these rates; without, with rates that cost the share."""
    alone = PruneMerge.keep if keep is None else keep
    check_number("keep", alone, 0, 1)
    if flops is None:  # less goes around where nobody says how much
        return replace(every, keep=alone) if prune is not None else keeping(every, alone)
    check_share(flops)
    if keep is not None:
        raise MethodError(f"keep={keep!r} and flops={flops!r}: give one of the two")
    return every


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Height and width of these images, in patches."""
    family = find(model)
    grid = family.grid({family.arguments[0]: images})
    if grid is None or len(grid) != 2:
        raise DataError("these images have no common patch grid: give images of one size")
    return grid[0], grid[1]


def _repeated(loader: Iterable[Any], iterations: int) -> Iterator[Batch]:
    """So many batches, from the beginning again where there are fewer."""
    left = iterations
    while left:
        before = left
        for batch in itertools.islice(_iterated(loader), left):
            left -= 1
            yield _labelled(batch)
        if left == before:
            if left < iterations:
                warnings.warn(
                    f"the loader gave {iterations - left} batches of {iterations}, and cannot be "
                    "begun again: scores are of those",
                    stacklevel=4,
                )
            return


def _iterated(loader: Any) -> Iterator[Any]:
    if isinstance(loader, Tensor) or not hasattr(loader, "__iter__"):
        raise DataError(f"a {type(loader).__name__} gives no batches: give a DataLoader, or a list")
    return iter(loader)


def _labelled(batch: Any) -> Batch:
    """Images and their labels, or an error that says what was there."""
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    images, labels = batch if pair else (None, None)
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise DataError(f"batches of images and labels are needed, got a {type(batch).__name__}")
    if images.dim() != 4 or not images.is_floating_point() or len(images) != len(labels):
        raise DataError(
            f"a batch of {images.dtype} {list(images.shape)} with {list(labels.shape)} labels: "
            "expected images [B, C, H, W] as the model takes them, and a label for each"
        )
    if not len(images):
        raise DataError("a batch without images: leave it out")
    if labels.is_floating_point():
        return images, labels
    if labels.dim() not in (1, 3):
        raise DataError(f"labels {list(labels.shape)}: expected [B], or [B, H, W] for pixels")
    return images, labels.long()


PruneMerge.search = search
