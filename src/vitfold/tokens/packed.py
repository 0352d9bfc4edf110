"""The books of images that each keep their own number of tokens.

The tokens of all images lie one after another, `[1, T, C]`, as if they were those of one image: so
linear layers and norms see no padding, and a `TokenMap` of one image describes what leaves.
"""

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from vitfold.tokens import ragged
from vitfold.tokens.state import Ledger, four, pick
from vitfold.tokens.tokenmap import PackedMap, TokenMap, apart, one_image, take


@dataclass(frozen=True, eq=False)
class Packed(Ledger):
    """The books over one long row: `size`, `origin` and `maps` are those of one image, whose
    original tokens are all of the batch.

    lengths: how many tokens each image has.
    begun: whether a block has decided anything, be it that all stay.
    """

    lengths: tuple[int, ...] = ()
    begun: bool = False

    @classmethod
    def open(
        cls,
        x: Tensor,
        prefix: int,
        grid: tuple[int, int] | None,
        valid: Tensor | None,
        soft: bool = False,
    ) -> "Packed":
        """Padding leaves before the first block."""
        batch, tokens = x.shape[:2]
        books = cls(tokens, prefix, grid, lengths=(tokens,) * batch)
        if valid is None:
            return books
        rows = torch.arange(batch * tokens, device=x.device)
        here = valid.flatten()
        padding = TokenMap.dropping(rows[here].unsqueeze(0), rows[~here].unsqueeze(0))
        return books._then(padding, None)

    @property
    def now(self) -> int:
        return sum(self.lengths)

    @property
    def starts(self) -> list[int]:
        """Where each image begins, and where the last one ends."""
        return list(itertools.accumulate(self.lengths, initial=0))

    @cached_property
    def image(self) -> Tensor:
        """`[T]`: the image of every token."""
        assert self.origin is not None
        return self.origin[0] // self.tokens

    def rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`[B, longest]`: the tokens of each image, and which of those places hold one."""
        return ragged.table(self.numbers(device))

    def numbers(self, device: torch.device) -> Tensor:
        """`[B]`: the lengths."""
        return torch.tensor(self.lengths, device=device)

    def places(self, x: Tensor) -> Tensor:
        """`[1, T]`: the original position of every token in its image."""
        if self.origin is not None:
            return self.origin % self.tokens
        return (torch.arange(self.now, device=x.device) % self.tokens).unsqueeze(0)

    def ranks(self, like: Tensor) -> Tensor:
        lengths = self.numbers(like.device)
        owners = ragged.owners(lengths, self.now)
        places = torch.arange(self.now, device=like.device) - ragged.starts(lengths)[owners]
        return places.unsqueeze(0)

    def present(self, x: Tensor) -> Tensor:
        """`[1, T]`: all of them."""
        return torch.ones(1, self.now, dtype=torch.bool, device=x.device)

    def unpacked(self, x: Tensor) -> Tensor:
        """As the tokens lie between blocks."""
        return self.unfold(x) if self.whole_images else x

    @property
    def whole_images(self) -> bool:
        """Whether no block has decided anything yet, and images are as the model has them. What one
        image loses so says nothing about how another one is computed."""
        return not self.begun

    def holds(self, x: Tensor) -> bool:
        rows = (len(self.lengths), self.tokens) if self.whole_images else (1, self.now)
        return x.shape[:2] == rows

    def pack(self, x: Tensor) -> Tensor:
        """`[1, T, ...]`: the tokens of now one after another. Between blocks, and as long as images
        are whole, they lie beside each other, as the model has them."""
        return x if x.shape[:2] == (1, self.now) else one_image(x)

    def counts(self, batch: int) -> list[int]:
        return list(self.lengths)

    def reduce(self, x: Tensor, step: TokenMap) -> tuple[Tensor, Ledger]:
        x = self.pack(x)
        if step.gone.shape[1]:
            return super().reduce(x, step)
        return x, replace(self, begun=True)

    def _then(self, step: TokenMap, size: Tensor | None) -> "Packed":
        origin = step.keep if self.origin is None else self.origin.gather(1, step.keep)
        lengths = torch.bincount(origin[0] // self.tokens, minlength=len(self.lengths)).tolist()
        maps = (*self.maps, step)
        return replace(
            self, size=size, origin=origin, maps=maps, lengths=tuple(lengths), begun=True
        )

    def flat(self, like: Tensor) -> TokenMap:
        """The map from the original tokens of all images to those of now."""
        return super().flat(like) if self.maps else TokenMap.identity(1, self.now, like.device)

    def whole(self, like: Tensor) -> PackedMap:
        return PackedMap(self.flat(like), self.lengths)

    def fold(self, x: Tensor) -> Tensor:
        if self.whole_images:
            return x
        return one_image(x) if self.origin is None else take(one_image(x), self.origin)

    def unfold(self, x: Tensor) -> Tensor:
        batch = len(self.lengths)
        if self.whole_images:
            beside = x.shape[:2] == (batch, self.tokens)
            return x if beside else apart(x, batch)
        flat = self.flat(x)
        fill = None if flat.fate == "merged" else self._mean(x)
        return apart(flat.unfold(x, fill), batch)

    def _mean(self, x: Tensor) -> Tensor:
        """`[1, B * tokens, C]`: the mean of the surviving patches of every token's image."""
        assert self.origin is not None
        patch = self.origin[0] % self.tokens >= self.prefix
        weight = (self.sizes(x)[0] * patch).unsqueeze(1)
        rows = torch.cat([x[0] * weight, weight], dim=1)  # counts in bfloat16 would be none
        total = rows.new_zeros(len(self.lengths), rows.shape[1]).index_add(0, self.image, rows)
        mean = (total[:, :-1] / total[:, -1:].clamp(min=1e-6)).to(x.dtype)
        return mean.repeat_interleave(self.tokens, dim=0).unsqueeze(0)

    def rotations(self, table: Tensor, still: Tensor) -> Tensor:
        """A table over original patches, for all tokens of now: `[1, 1 or H, T, D]`. Prefix tokens
        get the row `still`."""
        table = four(table)
        rows = still.to(table.dtype).expand(*table.shape[:2], self.prefix, table.shape[-1])
        full = torch.cat([rows, table], dim=2)
        full = full.expand(len(self.lengths), -1, -1, -1).transpose(0, 1).flatten(1, 2)
        return (full if self.origin is None else full[:, self.origin[0]]).unsqueeze(0)

    def bias(self, mask: Tensor, image: int) -> Tensor:
        """`[1, 1 or H, n or 1, n]`: a bias over original tokens, for those of one image."""
        mask = four(mask)
        mask = mask[image : image + 1] if mask.shape[0] > 1 else mask
        if self.origin is None:
            return mask
        start, end = self.starts[image : image + 2]
        place = self.origin[:, start:end] % self.tokens
        return pick(pick(mask, place, -1), place, -2)

    def biases(self, mask: Tensor, rows: Tensor) -> Tensor:
        """`[B, 1 or H, longest or 1, longest]`: the same for all images, at `rows[B, longest]`."""
        place = rows if self.origin is None else self.origin[0][rows]
        return pick(pick(four(mask), place % self.tokens, -1), place % self.tokens, -2)

    def level(self, x: Tensor) -> tuple[Tensor, Ledger]:
        if self.whole_images:
            return self.unfold(x), self
        rows, here = self.rows(x.device)
        size = ragged.pad(self.sizes(x), here)
        books = Level(
            self.tokens,
            self.prefix,
            self.grid,
            size=size,
            origin=rows,
            maps=self.maps,
            valid=here,
            notes=self.notes,
            packed=self,
        )
        return ragged.pad(x, here), books


@dataclass(frozen=True, eq=False)
class Level(Ledger):
    """The books of packed tokens in rows as long as the longest image's, padded."""

    packed: Packed = field(kw_only=True)

    def whole(self, like: Tensor) -> PackedMap:
        return self.packed.whole(like)

    def unfold(self, x: Tensor) -> Tensor:
        assert self.valid is not None  # it is made with it
        return self.packed.unfold(x[self.valid].unsqueeze(0))
