"""MergeDrop: merge what is alike, drop what nobody attends to, in fixed numbers."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from vitfold.methods.checks import check_reduction, check_switch
from vitfold.methods.merging import Merging
from vitfold.methods.registry import register
from vitfold.methods.schedule import Reduction, per_block
from vitfold.methods.step import Received, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import bipartite, lowest
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap, take


@register("mergedrop")
@dataclass(frozen=True)
class MergeDrop(Merging):
    """Every block merges its `r` most similar tokens, then drops the `drop` that receive the least
    attention: what LTMP does, with the same number of tokens for every image.

    drop: tokens to drop per block, in any form of `r`.
    drop_first: whether dropping comes before merging.
    """

    by_share: ClassVar[bool] = False
    restores: ClassVar[bool] = False
    pads: ClassVar[bool] = False

    drop: Reduction = field(default=0, hash=False)
    drop_first: bool = False
    proportional: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reduction(self.drop, "drop")
        check_switch("drop_first", self.drop_first)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        drops = per_block(self.drop, layout.depth, 0)
        patches = layout.patches
        steps: list[Step | None] = []
        for block, (r, drop) in enumerate(zip(schedule, drops, strict=True)):
            first = min(drop, patches - 1) if self.drop_first else 0
            merges = min(r, (patches - first) // 2)
            dropped = first if self.drop_first else min(drop, patches - merges - 1)
            patches -= merges + dropped
            steps.append(self._step(block, merges, max(dropped, 0)))
        return tuple(steps)

    def _step(self, block: int, merges: int, drops: int) -> Step | None:
        if not (merges or drops):
            return None

        def match(metric: Tensor, state: TokenState, received: Tensor | None = None) -> TokenMap:
            scores = metric[..., 0] if received is None else received
            whole: TokenMap | None = None
            for act in ("drop", "merge") if self.drop_first else ("merge", "drop"):
                if act == "merge":
                    step = bipartite(metric, merges, state.prefix).in_order()
                else:
                    step = lowest(scores, drops, state.prefix)
                metric, scores = take(metric, step.keep), step.fold_max(scores)
                whole = step if whole is None else whole.then(step)
            assert whole is not None
            return whole

        received: Received | None = "all" if drops else None
        return Step(self.cue, merges + drops, match, self.seed + block, received)
