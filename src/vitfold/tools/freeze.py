"""Freeze: from a number of tokens for every image to one for all, to export, compile and batch."""

import itertools
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitfold.errors import DataError, MethodError
from vitfold.folding.calls import fold_of, follow, masked
from vitfold.folding.inputs import Inputs, batches_in, images_in
from vitfold.folding.run import Run
from vitfold.methods.base import Base, has_fixed
from vitfold.methods.schedule import whole
from vitfold.tokens.modes import evaluating
from vitfold.tokens.state import TokenState
from vitfold.tools.sensitivity import basis_of, fold_along

ModelT = TypeVar("ModelT", bound=nn.Module)


def freeze(model: ModelT, images: Inputs | Iterable[Any]) -> ModelT:
    """Fold a model whose images keep numbers of their own with fixed ones instead, in place: in
    every block as many tokens merge, and as many are dropped, as on average over these images. LTMP
    becomes MergeDrop, WardCut Ward, and FisherCut Fisher. Returns it.

    images: training images, prepared for the model: `[B, C, H, W]`, what it takes by name, or
        batches of either, with labels or without.
    """
    method = check_ragged(model)
    merged, dropped = _means(model, batches_in(images))
    fixed = method.fixed(whole(merged), whole(dropped))
    assert fixed is not None  # it says how
    return fold_along(model, fixed, basis_of(model))


def check_ragged(model: nn.Module) -> Base:
    """The method of a model; refused where there is nothing to freeze."""
    method = fold_of(model).method
    if not method.ragged:
        raise MethodError(
            f"{type(method).__name__} removes fixed numbers already: freeze takes a model with "
            "LTMP, WardCut or FisherCut"
        )
    if not has_fixed(method):
        raise MethodError(f"{method} has no form in which all images keep as many tokens")
    return method


def _means(model: nn.Module, batches: Iterable[Inputs]) -> tuple[list[float], list[float]]:
    """How many tokens of an image merge in every block, and how many are dropped."""
    total = 0
    counts = torch.zeros(2, fold_of(model).family.depth, dtype=torch.float64)
    for images in batches:
        with masked(False), evaluating(model):
            counts += _gone(follow(model, images))
        total += len(images_in(images))
    if not total:
        raise DataError("no images to take the mean over: give some")
    merged, dropped = (counts / total).tolist()
    return merged, dropped


def _gone(run: Run) -> Tensor:
    """`[2, depth]`: how many tokens of a batch merged, and how many were dropped."""
    numbers = [_between(*pair) for pair in itertools.pairwise(run.states)]
    return torch.tensor(numbers, dtype=torch.float64).T


def _between(before: TokenState, after: TokenState) -> tuple[int, int]:
    goals = [step.into for step in after.maps[len(before.maps) :]]
    merged = sum(int((goal >= 0).sum()) for goal in goals)
    return merged, sum(goal.numel() for goal in goals) - merged
