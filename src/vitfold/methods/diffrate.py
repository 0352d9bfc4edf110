"""DiffRate: what the class token attends to least is dropped, what it attends to little merges."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.checks import check_number
from vitfold.methods.registry import register
from vitfold.methods.step import Step
from vitfold.methods.tome import ToMe
from vitfold.tokens import kernels
from vitfold.tokens.kernels import Side
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import biggest_first, by_ratio, joining, unit
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import DROPPED, Fate, TokenMap, take


@register("diffrate")
@dataclass(frozen=True)
class DiffRate(ToMe):
    """Every block ranks its patches by the attention of the class token, a mean over heads. Of the
    `r` lowest, the last are dropped, and each of the others merges into what it resembles most
    above them.

    The ranking is that of DiffRate (arXiv 2305.17997). There, how many are dropped and how many
    merge is learned for every block; here nothing is learned, and it is the same share everywhere.

    dropped: the share of the `r` that is dropped, rounded down.
    """

    pads: ClassVar[bool] = False
    restores: ClassVar[bool] = False

    dropped: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("dropped", self.dropped, 0, 1)

    def check(self, layout: Layout) -> None:
        super().check(layout)
        if not layout.class_token:
            raise MethodError("DiffRate goes by the attention of a class token: the model has none")

    def merge(self, block: int, r: int) -> Step:
        drops = int(r * self.dropped)

        def match(metric: Tensor, state: TokenState, attention: Tensor) -> TokenMap:
            return least(metric, attention, r - drops, drops, state.prefix)

        return Step(self.cue, r, match, self.seed + block, "first")


def least(metric: Tensor, attention: Tensor, merges: int, drops: int, prefix: int) -> TokenMap:
    """Drop the patches of least attention, and merge those that come next."""
    ratio, margin = by_ratio(attention[:, prefix:])
    order = biggest_first(ratio, margin) + prefix
    stay, merged, dropped = order.split([order.shape[1] - merges - drops, merges, drops], dim=1)
    target = torch.full_like(dropped, DROPPED)
    if merges:
        rows = unit(metric)
        sides = (Side(take(rows, places)) for places in (merged, stay))
        partner = kernels.active(metric).nearest(*sides).partner(None)
        target = torch.cat([stay.gather(1, partner), target], dim=1)
    fate: Fate = "mixed" if merges and drops else "merged" if merges else "dropped"
    return joining(torch.cat([merged, dropped], dim=1), target, metric.shape[1], fate)
