"""WardCut: merge what moves less than a height, which is the same for all images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.methods.base import Base
from vitfold.methods.checks import check_cue, check_inflection, check_share, check_switch
from vitfold.methods.learned import Learned
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step, View
from vitfold.methods.ward import Ward
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState

HIGHEST = 4.0
"""More than any two tokens are apart: twice the root of one half is the most."""


@register("wardcut")
@dataclass(frozen=True)
class WardCut(Base):
    """Ward's clusters, cut at a height instead of at a number: in every block all pairs merge that
    are nearer than the height of that block. Images that say little keep few tokens, others more.

    No training: `vitfold.calibrate(model, images)` finds the heights at which these images cost as
    much as was asked for. Until then nothing merges.

    flops: the share of the dense FLOPs, on average over images.
    inflection: of the ramp along which `flops` spreads what leaves, on average over images.
    cue: what tokens are compared by.
    proportional: whether a token of size s counts s times in attention.
    """

    ragged: ClassVar[bool] = True
    command: ClassVar[str] = "calibrate"
    even: ClassVar[type[Ward]] = Ward
    """The method by which every image loses as many."""

    flops: float | None = None
    inflection: float = -0.5
    cue: str = Ward.cue
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.flops)
        check_inflection(self.inflection)
        check_cue(self.cue)
        check_switch("proportional", self.proportional)

    def fixed(self, merged: Sequence[int], dropped: Sequence[int]) -> Ward:
        return self.even(r=list(merged), cue=self.cue, proportional=self.proportional)

    def learn(self, depth: int, width: int) -> "Heights":
        return Heights(self, depth)


class Heights(Learned):
    """What calibration of WardCut sets: the height of every block.

    height: `[depth]` what is nearer than this merges.
    """

    height: Tensor

    def __init__(self, method: WardCut, depth: int) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("height", torch.zeros(depth))

    def constrain(self) -> None:
        self.height.clamp_(0, HIGHEST)

    def scale(self, by: float) -> None:
        self.height.mul_(by)
        self.constrain()

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        return tuple(
            Cut(self.method.cue, None, height=height) if height else None
            for height in self.height.tolist()
        )


@dataclass(frozen=True)
class Cut(Step):
    """Merges all pairs that Ward's criterion has nearer than a height."""

    height: float = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        return state.apply(x, state.merge_above(view.cue, -self.height, by_size=True))
