"""MCTF: merge what is alike, small, and attended to by nobody."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.methods.registry import register
from vitfold.methods.step import Step
from vitfold.methods.tome import ToMe
from vitfold.tokens.match import by_product, unit
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap

BY_ATTENTION, BY_SIZE = 1 / 20, 1 / 40
"""How much attention received and size count, beside a cosine, which counts as it is."""


@register("mctf")
@dataclass(frozen=True)
class MCTF(ToMe):
    """Every block merges the `r` tokens whose best pair has the highest product of three criteria:
    `(1 + cosine) / 2`, `(1 / (a b)) ** (1 / 20)` for the attention that the two receive, and
    `(1 / (s t)) ** (1 / 40)` for their sizes. A group is the mean of its tokens, weighted by
    attention times size.

    The criteria and the weighted mean are those of MCTF (arXiv 2403.10030). There, attention is
    that of the next block, computed ahead, and pairs are looked for in both directions; here it is
    that of this block, and half the tokens merge into the other half, as in ToMe.
    """

    pads: ClassVar[bool] = False

    def merge(self, block: int, r: int) -> Step:
        def match(metric: Tensor, state: TokenState, received: Tensor) -> TokenMap:
            size = state.sizes()
            attention = received.to(size.dtype).clamp(min=torch.finfo(size.dtype).tiny)
            rows = criteria(metric, attention, size)
            return replace(by_product(rows, r, state.prefix), weight=attention * size)

        return Step(self.cue, r, match, self.seed + block, "all")


def criteria(metric: Tensor, attention: Tensor, size: Tensor) -> Tensor:
    """`[B, N, d + 1]`: rows whose products are those of the criteria, but for a factor that is the
    same for all pairs of an image: one more channel makes a cosine `1 + cosine`, and what counts
    for each of two tokens is the length of its row."""
    around = attention / attention.mean(dim=1, keepdim=True)
    length = around.pow(-BY_ATTENTION) * size.pow(-BY_SIZE)
    rows = unit(metric)
    return torch.cat([rows, torch.ones_like(rows[..., :1])], -1) * length.unsqueeze(-1).to(rows)
