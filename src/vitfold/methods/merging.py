"""What the merging methods share: their options, and the step that merges over all tokens."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from vitfold.methods.base import Method, everywhere
from vitfold.methods.checks import check_cue, check_skip, check_switch, check_whole
from vitfold.methods.step import Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import bipartite
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap


@dataclass(frozen=True)
class Merging(Method):
    """Merge what is most similar.

    cue: what tokens are compared by.
    proportional: whether a token of size s counts s times in attention; off for models that were
        trained with merging.
    seed: of the cue `random`.
    """

    restores: ClassVar[bool] = True
    by_size: ClassVar[bool] = False
    """Whether large groups have to resemble each other more."""

    cue: str = field(default="k", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cue(self.cue)
        check_switch("proportional", self.proportional)
        check_whole("seed", self.seed, least=0)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        return everywhere(layout, schedule, self.merge)

    def merge(self, block: int, r: int) -> Step:
        """The step that merges `r` tokens over the whole sequence."""

        def match(metric: Tensor, state: TokenState) -> TokenMap:
            size = state.size if self.by_size else None
            return bipartite(metric, r, state.prefix, state.valid, size)

        return Step(self.cue, r, match, self.seed + block)


@dataclass(frozen=True)
class Late(Merging):
    """Merge after `skip` dense blocks (default: a sixth of the depth)."""

    skip: int | None = None
    proportional: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip is not None:
            check_skip(self.skip)

    def first(self, depth: int) -> int:
        return depth // 6 if self.skip is None else self.skip
