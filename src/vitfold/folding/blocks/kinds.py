"""How a block runs in two halves, between which its tokens are reduced."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitfold.folding.blocks.attention import Attend, Attentions
from vitfold.tokens.regions import Regions

Block = Any

First = Callable[[Block, Tensor, Attend], Tensor]
"""The first half of a block: the residual stream `[B, N, C]` through attention."""

Second = Callable[..., Tensor]
"""The second half of a block: the residual stream through the MLP."""


@dataclass(frozen=True, eq=False)
class BlockKind:
    """How the blocks of one class run.

    family: what is known of their attention.
    first: the first half: from the residual stream to the residual stream.
    feed: the second half, or None where both run in parallel: it is reduced after it.
    arguments: names of what the block takes besides its tokens, in their order.
    axis: of the tokens in what the block takes: 1, or 0 where images lie along the second.
    suffix: how many tokens of the prefix lie behind the patches in what the block takes.
    tuples: how many things the block hands out in a tuple, tokens first; 0: tokens alone.
    flat: whether it takes the tokens of all images in one row, `[T, C]`.
    feed_arguments: names of those arguments that the second half takes too.
    regions: the sequences that attend each by itself, where a block takes no `[B, N, C]` or attends
        to less; all tokens are there again after it.
    behind_regions: what the block does after both halves, on what it takes, and nothing where that
        is None.
    """

    family: Attentions
    first: First
    feed: Second | None
    arguments: tuple[str, ...] = ()
    axis: int = 1
    suffix: int = 0
    tuples: int = 0
    flat: bool = False
    feed_arguments: tuple[str, ...] = ()
    regions: Regions | None = None
    behind_regions: Callable[[Block, Tensor], Tensor] | None = None

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        """The first half on `x[B, N, C]`."""
        attend.family = self.family
        return self.first(block, x, attend)

    def second(self, block: Block, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The second half, where there is one, with what it takes of the arguments of the block."""
        if self.feed is None:
            return x
        return self.feed(block, x, **{name: arguments.get(name) for name in self.feed_arguments})

    def dense(self, block: Block, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The block's own forward: its tokens alone."""
        out = type(block).forward(block, x, **arguments)
        return out[0] if self.tuples else out

    def turned(self, x: Tensor) -> Tensor:
        """`[B, N, C]` from the layout that the block takes."""
        if self.flat:
            return x.unsqueeze(0)
        return x if self.axis else x.transpose(0, 1)

    def ahead(self, x: Tensor) -> Tensor:
        """`[B, N, C]` with the whole prefix first."""
        return x.roll(self.suffix, dims=1) if self.suffix else x

    def behind(self, x: Tensor) -> Tensor:
        """`[B, N, C]` with that part of the prefix last which the block has there."""
        return x.roll(-self.suffix, dims=1) if self.suffix else x

    def handed(self, x: Tensor) -> Any:
        """What the block hands out, from `[B, N, C]`."""
        x = x.squeeze(0) if self.flat else self.turned(x)
        return (x, *[None] * (self.tuples - 1)) if self.tuples else x
