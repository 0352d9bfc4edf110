"""How a block runs in two halves, between which its tokens are reduced."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitfold.folding.blocks.attention import Attend, Attentions

Block = Any

First = Callable[[Block, Tensor, Attend], Tensor]
"""The first half of a block: the residual stream `[B, N, C]` through attention."""

Second = Callable[[Block, Tensor], Tensor]
"""The second half of a block: the residual stream through the MLP."""


@dataclass(frozen=True, eq=False)
class BlockKind:
    """How the blocks of one class run.

    family: what is known of their attention.
    first: the first half: from the residual stream to the residual stream.
    feed: the second half, or None where both run in parallel: it is reduced after it.
    arguments: names of what the block takes besides its tokens, in their order.
    axis: of the tokens in what the block takes: 1, or 0 where images lie along the second.
    tupled: whether the block hands out its tokens as the first of a pair.
    """

    family: Attentions
    first: First
    feed: Second | None
    arguments: tuple[str, ...] = ()
    axis: int = 1
    tupled: bool = False

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        """The first half on `x[B, N, C]`."""
        attend.family = self.family
        return self.first(block, x, attend)

    def out(self, x: Tensor) -> Any:
        """What the block hands out."""
        return (x, None) if self.tupled else x

    def turned(self, x: Tensor) -> Tensor:
        """`[B, N, C]` from the layout that the block takes, and back."""
        return x if self.axis else x.transpose(0, 1)
