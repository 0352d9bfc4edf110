"""Blocks in their two halves, attention and MLP, with something run in between."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import by_name
from vitfold.tokens.dense import Dense
from vitfold.tokens.state import TokenState

Between = Callable[[Tensor], Tensor]
"""Makes the tokens `[B, n, C]` that the MLP gets, of those that attention left."""


class FirstTokens(Dense):
    """The state of tokens that are the first ones of the original sequence."""

    def __init__(self, tokens: int, prefix: int) -> None:
        super().__init__(tokens, prefix, origin=torch.empty(1, tokens, device="meta"))

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The part of a mask that is theirs."""
        return None if mask is None else mask[..., : self.tokens, : self.tokens]

    def positions(self, table: Tensor, still: Tensor | None = None) -> Tensor:
        """The part of a table of positions that is theirs."""
        return table[..., : self.tokens - self.prefix, :]


def halved(
    block: nn.Module, kind: BlockKind, state: TokenState, between: Between
) -> Callable[..., Tensor]:
    """The forward of a block on `[B, N, C]`, with something between its halves."""
    return functools.partial(_forward, block, kind, state, between)


def _forward(
    block: nn.Module,
    kind: BlockKind,
    state: TokenState,
    between: Between,
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    arguments = by_name(kind.arguments, args, kwargs)
    x = between(kind.attend(block, x, Attend(state, arguments, False, None)))
    return kind.second(block, x, arguments)


def turned(kind: BlockKind, forward: Callable[..., Tensor]) -> Callable[..., Any]:
    """A forward of `[B, N, C]` as one of what the block takes."""
    return functools.partial(_turned, kind, forward)


def _turned(
    kind: BlockKind, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return kind.handed(kind.behind(forward(kind.ahead(kind.turned(x)), *args, **kwargs)))
