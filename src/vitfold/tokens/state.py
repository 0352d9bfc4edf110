"""The books of images that all have the same number of tokens."""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitfold.tokens.tokenmap import PackedMap, TokenMap, take


@dataclass(frozen=True, eq=False)
class Ledger:
    """Sizes, places and history of the tokens that travel through the blocks.

    tokens: how many entered the first block, prefix included.
    prefix: how many of those are class, distillation or register tokens; they never move.
    grid: height and width of the patch grid, where the tokens form one.
    size: `[B, n]` how many original tokens each stands for; None while nothing was merged.
    origin: `[B, n]` the original position that gives each token its place; None: its own.
    maps: what each block did so far.
    valid: `[B, n]` False for padding; None where nothing is padded.
    notes: what a method has to remember from block to block.
    """

    tokens: int
    prefix: int
    grid: tuple[int, int] | None = None
    size: Tensor | None = None
    origin: Tensor | None = None
    maps: tuple[TokenMap, ...] = ()
    valid: Tensor | None = None
    notes: object = None

    @classmethod
    def open(
        cls,
        x: Tensor,
        prefix: int,
        grid: tuple[int, int] | None,
        valid: Tensor | None,
        soft: bool = False,
    ) -> "Ledger":
        """The books on the tokens `x[B, N, C]` that enter the first block."""
        return cls(x.shape[1], prefix, grid, valid=valid)

    @property
    def now(self) -> int:
        """How many tokens there are."""
        return self.tokens if self.origin is None else self.origin.shape[1]

    @property
    def changed(self) -> bool:
        """Whether tokens may have left."""
        return bool(self.maps)

    @property
    def drops(self) -> bool:
        """Whether tokens may have gone nowhere."""
        return any(step.fate != "merged" for step in self.maps)

    def holds(self, x: Tensor) -> bool:
        """Whether `x` is the tokens of now, and no dense ones."""
        return x.shape[1] == self.now

    def counts(self, batch: int) -> list[int]:
        """How many tokens each image has."""
        return [self.now] * batch if self.valid is None else self.valid.sum(dim=1).tolist()

    def level(self, x: Tensor) -> tuple[Tensor, "Ledger"]:
        """The tokens in rows of one length, and the books on those: for what reads out."""
        return x, self

    def plain(self) -> "Ledger":
        """The books that a block which does nothing to its tokens hands on."""
        return self

    def reduce(self, x: Tensor, step: TokenMap) -> tuple[Tensor, "Ledger"]:
        """The tokens `x[B, n, C]` after `step`, and the books that say so."""
        if self.size is None and not step.merges:
            return step.fold(x), self._then(step, None)
        x, size = step.reduce(x, self.sizes(x))
        return x, self._then(step, size)

    def _then(self, step: TokenMap, size: Tensor | None) -> "Ledger":
        return replace(
            self,
            size=size,
            origin=step.keep if self.origin is None else self.origin.gather(1, step.keep),
            maps=(*self.maps, step),
            valid=None if self.valid is None else self.valid.gather(1, step.keep),
        )

    def sizes(self, like: Tensor) -> Tensor:
        """`[B, n]`: the sizes, ones while nothing was merged. At least float32: they are counts."""
        if self.size is not None:
            return self.size
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.ones(like.shape[0], self.now, dtype=dtype, device=like.device)

    def ranks(self, like: Tensor) -> Tensor:
        """`[B, n]`: the place of every token among those that its image has now."""
        return torch.arange(self.now, device=like.device).expand(like.shape[0], -1)

    def whole(self, like: Tensor) -> TokenMap | PackedMap:
        """The map from the original tokens to those of now."""
        return self.flat(like)

    def flat(self, like: Tensor) -> TokenMap:
        """The same, over the rows that tokens lie in."""
        if not self.maps:
            return TokenMap.identity(like.shape[0], self.tokens, like.device)
        return functools.reduce(TokenMap.then, self.maps)

    def fold(self, x: Tensor) -> Tensor:
        """The tokens of now out of a dense `x[B, tokens, C]` that `unfold` made."""
        return x if self.origin is None else take(x, self.origin)

    def unfold(self, x: Tensor) -> Tensor:
        """Dense tokens: every original position shows the token it went into.

        A dropped position shows the mean of the surviving patches, which leaves mean and max
        pooling over the dense result as they are over the survivors.
        """
        if not self.maps:
            return x
        flat = self.flat(x)
        return flat.unfold(x, None if flat.fate == "merged" else self._mean(x))

    def _mean(self, x: Tensor) -> Tensor:
        size = self.sizes(x) if self.valid is None else self.sizes(x) * self.valid
        weight = size[:, self.prefix :].unsqueeze(-1)
        total = (x[:, self.prefix :] * weight).sum(1, keepdim=True)
        return (total / weight.sum(1, keepdim=True).clamp(min=1e-6)).to(x.dtype)

    def log_size(self, like: Tensor) -> Tensor | None:
        """`[B, 1, 1, n]`: what proportional attention adds to the logits of every key."""
        if self.size is None:
            return None
        return self.size.log().to(like.dtype).view(-1, 1, 1, self.size.shape[1])

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """An attention mask or bias `[..., N or 1, N]` over original tokens, for those of now."""
        if mask is None or self.origin is None:
            return mask
        mask = four(additive(mask, dtype))
        return pick(pick(mask, self.origin, -1), self.origin, -2)

    def positions(self, table: Tensor) -> Tensor:
        """A table `[..., N - prefix, D]` over original patches, for the patches of now:
        `[B, 1 or H, n - prefix, D]`. A merged token keeps the position of the one it went into."""
        if self.origin is None:
            return table
        return pick(four(table), self.origin[:, self.prefix :] - self.prefix, -2)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a bias."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def four(table: Tensor) -> Tensor:
    """A table or a mask with all four axes."""
    while table.dim() < 4:
        table = table.unsqueeze(0)
    return table


def pick(table: Tensor, index: Tensor, dim: int) -> Tensor:
    """Entries `index[B, n]` of `table[B or 1, H, R, K]` along `dim`, unless that axis is one."""
    if table.shape[dim] == 1:
        return table
    shape = [index.shape[0], *table.shape[1:]]
    shape[dim] = index.shape[1]
    view = [index.shape[0], 1, 1, 1]
    view[dim] = index.shape[1]
    full = [index.shape[0], *table.shape[1:]]
    return table.expand(full).gather(dim, index.view(view).expand(shape))
