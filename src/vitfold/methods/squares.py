"""A method's plan by whole squares of patches."""

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.step import Plan, Step, View
from vitfold.tokens import squares
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap


@dataclass(frozen=True)
class BySquare(Step):
    """What a step does to tokens, done to squares of them, which are compared by the mean of their
    patches.

    area: how many patches are in one.
    inner: the step of one token each.
    """

    area: int = field(default=1, kw_only=True)
    inner: Step = field(default_factory=Step, kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        prefix, match = state.prefix, self.inner.match
        if match is None:
            return x, state
        metric, rows = state.padded(view.cue)
        cues = [squares.mean(metric, self.area, prefix)]
        if view.received is not None:
            cues.append(squares.mean(state.padded(view.received)[0], self.area, prefix))
        change = match(cues[0], squares.state_of(rows, self.area), *cues[1:])
        if not isinstance(change, TokenMap):
            raise MethodError(_refusal(self.inner))
        return state.apply(x, squares.spread(change, self.area, prefix))


def layout_of_squares(layout: Layout) -> Layout:
    """The layout of squares as if each were a token."""
    area = layout.square**2
    return replace(
        layout,
        tokens=layout.prefix + layout.patches // area,
        grid=squares.squares_of(layout.grid, layout.square),
        square=1,
    )


def fewer(schedule: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """How many squares leave every block where so many patches are to: rounded up."""
    return tuple(math.ceil(r / layout.square**2) for r in schedule)


def by_squares(plan: Plan, layout: Layout) -> Plan:
    """A plan for squares, as one for their patches."""
    return tuple(None if step is None else _by_square(step, layout.square**2) for step in plan)


def _by_square(step: Step, area: int) -> BySquare:
    if type(step) is not Step or step.removes is None or step.watch is not None:
        raise MethodError(_refusal(step))
    return BySquare(
        step.cue,
        step.removes * area,
        step.match,
        step.seed,
        step.received,
        area=area,
        inner=step,
    )


def _refusal(step: Step) -> str:
    kind = type(step).__name__ if type(step) is not Step else "each token for itself"
    return (
        f"this method reduces by a step of its own ({kind}), which cannot go by whole squares of "
        "patches: use ToMe, Ward, EViT or another that merges or drops fixed numbers"
    )
