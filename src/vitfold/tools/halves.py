"""Blocks in their two halves, attention and MLP, for what looks in between or cuts there."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import by_name
from vitfold.folding.families import Found
from vitfold.tokens.state import Ledger


@dataclass(frozen=True, eq=False)
class Middle:
    """Tokens `[B, n, C]` in the middle of a block.

    before: as they entered it.
    cue: what was asked for beside them, or None.
    after: as attention left them: what the MLP gets.
    """

    before: Tensor
    cue: Tensor | None
    after: Tensor


Between = Callable[[Middle], Tensor]
"""Makes the tokens that the MLP gets."""


class FirstTokens(Ledger):
    """The state of tokens that are the first ones of the original sequence."""

    def __init__(self, tokens: int, prefix: int) -> None:
        super().__init__(tokens, prefix, origin=torch.empty(1, tokens, device="meta"))

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The part of a mask that is theirs."""
        return None if mask is None else mask[..., : self.tokens, : self.tokens]

    def positions(self, table: Tensor) -> Tensor:
        """The part of a table of positions that is theirs."""
        return table[..., : self.tokens - self.prefix, :]


def dense_state(trunk: Found) -> Ledger:
    """The state of all tokens of a trunk, none of which was reduced."""
    return Ledger(trunk.layout().tokens, trunk.prefix)


def halved(
    block: nn.Module, kind: BlockKind, state: Ledger, between: Between, cue: str | None = None
) -> Callable[..., Tensor]:
    """The forward of a block, with something between its halves.

    cue: of `Middle`: `x_attn` for what attention adds.
    """
    return functools.partial(_forward, block, kind, state, between, cue)


def _forward(
    block: nn.Module,
    kind: BlockKind,
    state: Ledger,
    between: Between,
    cue: str | None,
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    arguments = by_name(kind.arguments, args, kwargs)
    attend = Attend(state, arguments, False, cue)
    after = kind.attend(block, x, attend)
    x = between(Middle(x, attend.cues if cue else None, after))
    return kind.feed(block, x) if kind.feed else x
