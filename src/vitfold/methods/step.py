"""Step: what one block does to its tokens, as a method plans it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vitfold.tokens.state import Change, TokenState

Received = Literal["all", "first"]
"""Whose attention counts in what a token received: that of all, or of the first, class token."""

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""Gets the queries, keys and values `[B, H, n, d]` of a block."""


@dataclass(frozen=True, eq=False)
class View:
    """What the attention of a block hands to its step.

    cue: `[B, n, d]` what tokens are compared by.
    received: `[B, n]` the attention that each token received, a mean over heads and queries; None
        where no step wants it.
    before: `[B, n, C]` the tokens that entered the block.
    """

    cue: Tensor
    received: Tensor | None
    before: Tensor


@dataclass(frozen=True)
class Step:
    """What one block does to its tokens: before it, between attention and MLP, and after it. Each
    moment is given the tokens and their state, and returns both; by itself, it changes nothing.

    cue: what tokens are compared by in the middle; None where nothing is.
    removes: how many tokens leave; None where every image loses its own number.
    match: in the middle, the map from the cue `[B, n, d]` and the state of its tokens, and from the
        attention received `[B, n]` where that is wanted. A step that does something else overrides
        `reduce`.
    seed: of the cue `random`.
    received: whose attention is wanted in the middle, in what each token received.
    aside: how many tokens the block does not see that are there again after it.
    watch: looks at the queries, keys and values of the block.
    """

    cue: str | None = None
    removes: int | None = 0
    match: Callable[..., Change] | None = None
    seed: int = 0
    received: Received | None = None
    aside: int = 0
    watch: Watch | None = None

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """What becomes of tokens before the block."""
        return x, state

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """What becomes of tokens between attention and MLP."""
        if self.match is None:
            return x, state
        metric, rows = state.padded(view.cue)
        if view.received is None:
            return state.apply(x, self.match(metric, rows))
        return state.apply(x, self.match(metric, rows, state.padded(view.received)[0]))

    def leave(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """What becomes of tokens after the block."""
        return x, state


@dataclass(frozen=True)
class Apart(Step):
    """What a block does that sees sequences of their own, after which all tokens are there again.

    steps: one for the sequences of every part that are alike; None where nothing is done to them.
    """

    steps: tuple[Step | None, ...] = ()


Plan = tuple[Step | None, ...]
"""A step for every block; None where a block does nothing."""
