"""Rates: how much stays alone and how much goes around, for a share of the FLOPs."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.families import find
from vitfold.folding.fit import NEAR, Fit
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone, fold
from vitfold.methods.prune_merge.method import PruneMerge

TRIES = 14
"""Rates that are tried for how much stays alone, and for how much goes around."""

MOST = 0.9999
"""What goes around, at most."""

FAR = 16
"""How many patches more or less stay alone, or go around, where the search has to look closer."""

LOOKS = 30
"""How often it then does."""


def fit_rates(
    model: nn.Module, method: PruneMerge, share: float, image: Tensor, free: bool = False
) -> PruneMerge:
    """The method with rates that cost that share of the dense FLOPs: as many patches stay alone as
    it allows. Where none can, more go around than the method says, if it is `free`; and where one
    patch more or less is too much, rates a few patches away are tried."""
    fit = Fit[PruneMerge](share, costs(model, image))
    fit.along(lambda less: keeping(method, round(1 - less, 6)), 1 - share, 1.0, tries=TRIES)
    if fit.excess(fit.best) > NEAR and free:
        alone = replace(method, keep=0.0)
        fit.along(lambda more: replace(alone, prune=more), PruneMerge.prune, MOST, tries=TRIES)
    if fit.miss > NEAR and min(fit.costs.values()) < share < max(fit.costs.values()):
        _look(fit, _nearby(fit.best, 1.0 if free else method.prune))
    if fit.miss > NEAR:
        raise MethodError(
            f"flops={share} cannot be reached by merging in blocks {list(method.blocks or ())}: "
            f"the nearest share that can is {fit.nearest:.3f}; give other blocks"
        )
    return fit.best


def keeping(method: PruneMerge, keep: float) -> PruneMerge:
    """The method with `keep` as the share of patches that stay alone; less goes around where
    nothing else is left."""
    return replace(method, keep=keep, prune=min(method.prune, 1 - keep))


def costs(model: nn.Module, image: Tensor) -> Callable[[PruneMerge], float]:
    """The share of the dense FLOPs that rates cost, of images like this one."""
    ours = clone(model).eval()
    family = find(ours)
    weight = next(family.trunk.parameters())
    blank = torch.zeros_like(image, device=weight.device, dtype=weight.dtype)
    inputs = {family.arguments[0]: blank}
    whole = cost(family, **inputs)

    def share(rated: PruneMerge) -> float:
        fold(ours, rated)
        return cost(family, **inputs) / whole

    return share


def _look(fit: Fit[PruneMerge], candidates: Iterable[PruneMerge]) -> None:
    """Try rates whose cost ought to be near the share, by how many patches blocks see."""
    patches = torch.tensor([[_patches(rated), 1.0] for rated in fit.costs], dtype=torch.float64)
    excess = torch.tensor([[fit.excess(rated)] for rated in fit.costs], dtype=torch.float64)
    slope, start = torch.linalg.lstsq(patches, excess).solution.flatten().tolist()
    order = sorted(candidates, key=lambda rated: abs(slope * _patches(rated) + start))
    for rated in order[:LOOKS]:
        if abs(fit.excess(rated)) <= NEAR / 2:
            break


def _patches(method: PruneMerge) -> int:
    """How many patches all blocks see, mixed and alone, but for those that see all."""
    gone = sum(len(group) - max(group) - 1 for group in method.structure.values())
    return sum(map(len, method.scores or ())) - gone


def _nearby(method: PruneMerge, most: float) -> list[PruneMerge]:
    """Rates some patches away, the nearest first, of which at most so many go around."""
    rows = method.scores or ((),)
    patches = sum(map(len, rows)) if method.scope == "global" else len(rows[0])
    alone, around = round(method.keep * patches), round(method.prune * patches)
    rates = [
        (stay, leave)
        for stay in range(max(alone - FAR, 0), min(alone + FAR, patches) + 1)
        for leave in range(max(around - FAR, 0), min(around + FAR, patches - stay) + 1)
        if leave <= round(most * patches)
    ]
    rates.sort(key=lambda rate: abs(rate[0] - alone) + abs(rate[1] - around))
    return [replace(method, keep=a / patches, prune=b / patches) for a, b in rates]
