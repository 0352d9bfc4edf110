"""The state of images that all have the same number of tokens: where every forward starts."""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.tokens.masked import Masked
from vitfold.tokens.match import highest
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import Change, TokenState, additive, four, pick
from vitfold.tokens.threshold import Pairs
from vitfold.tokens.tokenmap import TokenMap, take


@dataclass(frozen=True, eq=False)
class Dense(TokenState):
    """Tokens `[B, n, C]`. The first change that may leave images different numbers makes them
    packed, or masked."""

    form: ClassVar[str] = "dense"

    @property
    def length(self) -> int:
        return self.tokens if self.origin is None else self.origin.shape[1]

    @property
    def counts(self) -> list[int]:
        return [self.length] * self.batch if self.valid is None else self.valid.sum(dim=1).tolist()

    def holds(self, x: Tensor) -> bool:
        return x.shape[1] == self.length

    def places(self) -> Tensor:
        if self.origin is not None:
            return self.origin
        return torch.arange(self.tokens, device=self.device).expand(self.batch, -1)

    def ranks(self) -> Tensor:
        return torch.arange(self.length, device=self.device).expand(self.batch, -1)

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if mask is None or self.origin is None:
            return mask
        mask = four(additive(mask, dtype))
        return pick(pick(mask, self.origin, -1), self.origin, -2)

    def positions(self, table: Tensor, still: Tensor | None = None) -> Tensor:
        """`[B, 1 or H, n - prefix, D]`. A merged token keeps the position of the one it went
        into."""
        if self.origin is None:
            return table
        return pick(four(table), self.origin[:, self.prefix :] - self.prefix, -2)

    @property
    def whole(self) -> TokenMap:
        if not self.maps:
            return TokenMap.identity(self.batch, self.tokens, self.device)
        return functools.reduce(TokenMap.then, self.maps)

    def fold(self, x: Tensor) -> Tensor:
        return x if self.origin is None else take(x, self.origin)

    def unfold(self, x: Tensor) -> Tensor:
        if not self.maps:
            return x
        whole = self.whole
        return whole.unfold(x, None if whole.fate == "merged" else self._mean(x))

    def _mean(self, x: Tensor) -> Tensor:
        """`[B, 1, C]`: the mean of the surviving patches, weighted by size."""
        size = self.sizes() if self.valid is None else self.sizes() * self.valid
        weight = size[:, self.prefix :].unsqueeze(-1)
        total = (x[:, self.prefix :] * weight).sum(1, keepdim=True)
        return (total / weight.sum(1, keepdim=True).clamp(min=1e-6)).to(x.dtype)

    def apply(self, x: Tensor, change: Change) -> tuple[Tensor, TokenState]:
        if self.masks or not isinstance(change, TokenMap):
            return self.ragged().apply(x, change)
        if self.size is None and not change.merges:
            return change.fold(x), self._then(change, None)
        x, size = change.reduce(x, self.sizes())
        return x, self._then(change, size)

    def ordered(self, x: Tensor, order: Tensor) -> tuple[Tensor, TokenState]:
        change = TokenMap(order, order[:, :0], order[:, :0])
        return take(x, order), self._then(change, None)

    def _then(self, change: TokenMap, size: Tensor | None) -> "Dense":
        return replace(
            self,
            size=size,
            origin=change.keep if self.origin is None else self.origin.gather(1, change.keep),
            maps=(*self.maps, change),
            valid=None if self.valid is None else self.valid.gather(1, change.keep),
        )

    def ragged(self) -> TokenState:
        return Masked.of(self) if self.masks else Packed.of(self)

    def alone(self, x: Tensor) -> tuple[Tensor, TokenState]:
        return self.ragged().alone(x)

    def pairs(self, metric: Tensor, by_size: bool = False, after: Change | None = None) -> Pairs:
        return self.ragged().pairs(metric, by_size, after)

    def merge_pairs(
        self,
        pairs: Pairs,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> Change:
        return self.ragged().merge_pairs(pairs, threshold, temperature, after)

    def drop_below(
        self,
        score: Tensor,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> Change:
        return self.ragged().drop_below(score, threshold, temperature, after)

    def join(self, heads: Tensor) -> Change:
        return self.ragged().join(heads)

    def keep(self, keep: Tensor) -> Change:
        return self.ragged().keep(keep)

    def keep_best(self, score: Tensor, left: int) -> Change:
        if self.masks:
            return self.ragged().keep_best(score, left)
        return highest(score, self.length - self.prefix - left, self.prefix)

    def restored(self, within: TokenState) -> TokenState:
        return Restored(
            **self.frame,
            size=self.size,
            origin=self.origin,
            maps=self.maps,
            valid=self.valid,
            notes=self.notes,
            within=within,
            outer=self,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Restored(Dense):
    """Tokens that are all there again after a block that saw fewer.

    within: the state that the block had: what is told of it.
    outer: the state from which the next block goes on.
    """

    within: TokenState
    outer: Dense

    @property
    def counts(self) -> list[int]:
        return self.within.counts

    @property
    def whole(self) -> TokenMap:
        whole = self.within.whole
        assert isinstance(whole, TokenMap)  # what a block sees of dense tokens is dense
        return whole

    def align(self, x: Tensor) -> tuple[Tensor, TokenState]:
        return self.outer.align(x)

    def unfold(self, x: Tensor) -> Tensor:
        return self.outer.unfold(x)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rejoined(Dense):
    """Tokens of images that are all there again after a block that saw them in sequences.

    within: the states that those had, part by part: what is told of the block.
    spots: `[number, n]` for every part, which token of its image each of theirs is.
    """

    within: tuple[TokenState, ...]
    spots: tuple[Tensor, ...]

    @property
    def counts(self) -> list[int]:
        parts = zip(self.within, self.spots, strict=True)
        each = [torch.tensor(state.counts).view(-1, len(spots)).sum(1) for state, spots in parts]
        return torch.stack(each).sum(0).tolist()

    @property
    def whole(self) -> TokenMap:
        parent = torch.zeros(self.batch, self.tokens, dtype=torch.long, device=self.device)
        for state, spots in zip(self.within, self.spots, strict=True):
            inside, own = state.whole, spots.repeat(self.batch, 1)
            assert isinstance(inside, TokenMap)  # of sequences that are alike as many leave
            head = own.gather(1, inside.keep.gather(1, inside.slot))
            parent.scatter_(1, own.view(self.batch, -1), head.view(self.batch, -1))
        return TokenMap.from_parent(parent)
