"""Drop: what merging is compared with."""

from dataclasses import dataclass

from torch import Tensor

from vitfold.methods.base import Method, everywhere
from vitfold.methods.checks import check_cue, check_skip, check_whole
from vitfold.methods.registry import register
from vitfold.methods.step import Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import lowest
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap


@register("drop")
@dataclass(frozen=True)
class Drop(Method):
    """Every block drops the `r` tokens whose cue has the smallest norm; as in merging, at most half
    of its patches.

    cue: what tokens are judged by.
    skip: how many of the first blocks stay dense.
    seed: of the cue `random`.
    """

    cue: str = "x_pre"
    skip: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cue(self.cue)
        check_skip(self.skip)
        check_whole("seed", self.seed, least=0)

    def first(self, depth: int) -> int:
        return self.skip

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        return everywhere(layout, schedule, self.drop)

    def drop(self, block: int, r: int) -> Step:
        """The step that drops `r` tokens."""

        def match(metric: Tensor, state: TokenState) -> TokenMap:
            return lowest(metric.norm(dim=-1), r, state.prefix, state.valid)

        return Step(self.cue, r, match, self.seed + block)
