"""EViT: what the class token attends to stays, and the rest becomes one token."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.base import register
from vitfold.methods.checks import check_switch
from vitfold.methods.staged import Staged
from vitfold.methods.steps import Step
from vitfold.tokens.kernels import rounding
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import biggest_first, by_ratio
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import TokenMap


@register("evit")
@dataclass(frozen=True)
class EViT(Staged):
    """Some blocks keep the patches that the class token attends to most, on average over heads, and
    fuse the others into one token, weighted by that attention.

    fuse: whether the others become a token; they are dropped otherwise.
    """

    pads: ClassVar[bool] = False

    fuse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("fuse", self.fuse)

    def check(self, layout: Layout) -> None:
        super().check(layout)
        if not layout.class_token:
            raise MethodError("EViT goes by the attention of a class token: the model has none")

    def step(self, removes: int) -> Step:
        def match(_: Tensor, ledger: Ledger, attention: Tensor) -> TokenMap:
            ranks, fused = by_ratio(attention)[0], attention if self.fuse else None
            return keep_first(ranks, removes, ledger.prefix, fused)

        return Step("x_pre", removes, match, received=True, by_first=True)


def keep_first(score: Tensor, r: int, prefix: int, fused: Tensor | None = None) -> TokenMap:
    """The map to the prefix, the patches of highest `score[B, N]` in their order and, if the others
    fuse, one token of them, weighted by `fused[B, N]`, so that `r` fewer are left."""
    order = biggest_first(score[:, prefix:], rounding(score)) + prefix
    kept = order.shape[1] - r - int(fused is not None)
    first = torch.arange(prefix, device=score.device).expand(score.shape[0], -1)
    stay = torch.cat([first, order[:, :kept].sort(dim=1).values], dim=1)
    if fused is None:
        return TokenMap.dropping(stay, order[:, kept:])
    keep = torch.cat([stay, order[:, kept : kept + 1]], dim=1)
    gone = order[:, kept + 1 :]
    weight = fused.clamp(min=torch.finfo(fused.dtype).tiny)
    return TokenMap(keep, gone, torch.full_like(gone, prefix + kept), weight=weight)
