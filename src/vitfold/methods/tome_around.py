"""ToMeAround: every block sees merged tokens, and the residual stream keeps all."""

from dataclasses import dataclass

from torch import Tensor

from vitfold.methods.base import Method
from vitfold.methods.checks import check_skip, check_switch
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import bipartite
from vitfold.tokens.state import TokenState


@register("tome-around")
@dataclass(frozen=True)
class ToMeAround(Method):
    """Every block sees the tokens that enter it with the `r` most similar merged, and what it adds
    to a merged token is added to all that it stands for: no token ever leaves.

    skip: how many of the first blocks stay dense.
    proportional: whether a token of size s counts s times in attention.
    """

    skip: int = 0
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_skip(self.skip)
        check_switch("proportional", self.proportional)

    def first(self, depth: int) -> int:
        return self.skip

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        most = layout.patches // 2
        return tuple(Around(aside=min(r, most)) if r and most else None for r in schedule)


class Around(Step):
    """Merges before the block, by what enters it, and unmerges what the block adds."""

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        metric, rows = state.padded(x.detach())
        merged, inside = state.apply(x, bipartite(metric, self.aside, rows.prefix, rows.valid))
        return merged, inside.noting((x, merged, state))

    def leave(self, x: Tensor, inside: TokenState) -> tuple[Tensor, TokenState]:
        before, merged, state = inside.notes
        added = x - merged
        for step in reversed(inside.maps[len(state.maps) :]):
            added = step.unfold(added)
        return before + added, state.restored(inside.noting(None))
