"""PiToMe: merge where tokens crowd, and leave alone what stands out."""

import functools
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vitfold.methods.base import everywhere
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step
from vitfold.methods.tome import ToMe
from vitfold.tokens.energy import redundant
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap

MARGIN = 0.9
"""From which cosine on tokens count as alike in the first block; it falls to zero."""


@register("pitome")
@dataclass(frozen=True)
class PiToMe(ToMe):
    """Every block merges `r` tokens among the `2 r` of highest energy: those that most others
    resemble. What stands out is protected, however much it resembles one other token.

    Energy, margins and the two alternating sets are those of PiToMe (arXiv 2405.16148). There the
    same share of tokens leaves every block; here `r` and `flops` spread them as for all methods.
    """

    pads: ClassVar[bool] = False

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        return everywhere(layout, schedule, functools.partial(self._merge, layout.depth))

    def _merge(self, depth: int, block: int, r: int) -> Step:
        margin = MARGIN * (1 - block / depth)

        def match(metric: Tensor, state: TokenState) -> TokenMap:
            return redundant(metric, r, state.prefix, margin)

        return Step(self.cue, r, match, self.seed + block)
