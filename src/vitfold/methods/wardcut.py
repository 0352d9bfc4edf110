"""WardCut: merge what moves less than a height, which is the same for all images."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.base import Base, register
from vitfold.methods.checks import check_cue, check_inflection, check_share, check_switch
from vitfold.methods.steps import Learned, Step
from vitfold.methods.ward import Ward
from vitfold.tokens import threshold
from vitfold.tokens.layout import Layout
from vitfold.tokens.masked import Mark, Masked
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import TokenMap

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
    found_by: ClassVar[str] = "calibrate"

    flops: float | None = None
    inflection: float = Ward.slope
    cue: str = Ward.cue
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.flops)
        check_inflection(self.inflection)
        check_cue(self.cue)
        check_switch("proportional", self.proportional)

    def fixed(self, merged: Sequence[int], dropped: Sequence[int]) -> Ward:
        return Ward(r=list(merged), cue=self.cue, proportional=self.proportional)

    def learn(self, depth: int, width: int) -> "Heights":
        return Heights(self, depth)

    def distances(self, metric: Tensor, books: Packed) -> threshold.Pairs:
        """Pairs of tokens, nearest first by value: minus what Ward's criterion asks for them."""
        return threshold.pairs(
            metric, books.numbers(metric.device), books.prefix, books.sizes(metric)
        )


class Heights(Learned):
    """What calibration finds.

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

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        return tuple(
            Step(self.method.cue, 0, functools.partial(self._match, height)) if height else None
            for height in self.height.tolist()
        )

    def _match(self, height: float, metric: Tensor, books: Ledger) -> TokenMap | Mark:
        if isinstance(books, Masked):
            level: Any = torch.tensor(-height, device=metric.device)
            weight = books.weight
            return threshold.merge_masked(metric, books.here, books.prefix, level, 1.0, weight)
        if isinstance(books, Packed):
            return self.method.distances(metric, books).above(-height, metric.shape[1])
        raise MethodError("WardCut keeps another number of tokens for every image")
