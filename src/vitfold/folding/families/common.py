"""What families share: the chain of folded blocks, weighted pooling, blank images, checks."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import FoldError, UnsupportedModel
from vitfold.folding.blocks.proxy import Proxy, hooked
from vitfold.folding.run import Run
from vitfold.tokens.layout import MANY
from vitfold.tokens.state import TokenState

Grid = tuple[int, ...] | None
Size = tuple[int, int, int]
Arguments = Mapping[str, Any]
Link = Callable[..., Tensor]


class Chain:
    """The blocks of one forward pass, in place of a trunk's container of blocks."""

    def __init__(self, links: Sequence[Link], container: nn.Module | None = None) -> None:
        self.links = links
        self.container = container

    def __len__(self) -> int:
        return len(self.links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    def __getitem__(self, index: Any) -> Any:
        return Chain(self.links[index]) if isinstance(index, slice) else self.links[index]

    def __call__(self, x: Tensor) -> Tensor:
        """Run the blocks one after another, and hooks on the container around them."""
        if self.container is None or not hooked(self.container):
            return self._pass(x)
        proxy: Any = Proxy(self.container, forward=self._pass)
        return nn.Module._call_impl(proxy, x)

    def _pass(self, x: Tensor) -> Tensor:
        for link in self.links:
            x = link(x)
        return x


def links(blocks: Sequence[nn.Module], run: Run) -> list[Link]:
    """The blocks, each bound to the run in which it is folded."""
    return [functools.partial(block, vitfold=run) for block in blocks]


def weighted(x: Tensor, state: TokenState, first: int, valid: Tensor | None = None) -> Tensor:
    """`x[B, n, C]` scaled so that the mean of its tokens from `first` on, over what is `valid`, is
    the mean weighted by their sizes."""
    if state.size is None:
        return x
    size = state.size if state.valid is None else state.size * state.valid
    pooled = size[:, first:]
    number = pooled.shape[1] if valid is None else (pooled > 0).sum(dim=1, keepdim=True)
    weight = size * (number / pooled.sum(dim=1, keepdim=True).clamp(min=1e-6))
    return x * weight.unsqueeze(-1).to(x.dtype)


def filling(run: Run, norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A norm of dense tokens after which dropped positions show the mean of normalized
    survivors."""

    def normed(x: Tensor) -> Tensor:
        y, state = norm(x), run.last
        return state.unfold(state.fold(y)) if state.drops else y

    return normed


def pair(sides: Any) -> tuple[int, int]:
    """Height and width, of which one number gives both."""
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return int(height), int(width)


def key_bias(x: Tensor, state: TokenState) -> Tensor:
    """`[B, n]`: what is added to the logits of attention that pools tokens: each counts as often
    as its size, padding not at all."""
    bias = state.sizes().log().to(x.dtype)
    return bias if state.valid is None else bias.masked_fill(~state.valid, float("-inf"))


def common_grid(shapes: Tensor) -> Grid:
    """The grid that all images have, of `shapes[B, 2]`; `MANY` where they differ."""
    if torch.compiler.is_compiling():
        return MANY
    if not len(shapes):
        return None
    if shapes.is_meta:  # nobody knows
        return MANY
    alike = bool((shapes == shapes[:1]).all())
    return (int(shapes[0, 0]), int(shapes[0, 1])) if alike else MANY


def blank_images(trunk: Any, size: Sequence[int], batch: int) -> Tensor:
    """Images of zeros, with the dtype and device of the trunk's weights."""
    weight = next(trunk.parameters())
    return torch.zeros(batch, *size, device=weight.device, dtype=weight.dtype)


def with_prefix(valid: Tensor, prefix: int) -> Tensor:
    """`[B, prefix + N]` from `valid[B, N]`: no prefix token is padding."""
    return torch.cat([valid.new_ones(valid.shape[0], prefix), valid], dim=1)


def check_depth(trunk: Any, blocks: Sequence[Any], run: Run) -> None:
    """Refuse a trunk whose blocks are not those that were folded."""
    if len(blocks) != run.depth:
        raise FoldError(
            f"{type(trunk).__name__} has {len(blocks)} blocks and had {run.depth} when it was "
            "folded: unfold it before its blocks change"
        )


def check_ran(trunk: Any, run: Run) -> None:
    """Refuse a forward that went past the folded blocks."""
    if not run.states:
        raise UnsupportedModel(
            f"the forward of {type(trunk).__name__} does not run its own blocks: unfold it"
        )
