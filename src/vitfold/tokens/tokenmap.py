"""Where every token goes: the one noun of vitfold. Knows no model.

A `TokenMap` turns `N` tokens into `slots` tokens. Some tokens *keep* a slot, in a declared order;
the others are *gone*: each goes *into* a slot (merged) or nowhere (dropped, -1). How many are gone
is the same for every image of a batch, so shapes are static.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vitfold.tokens import kernels, ragged
from vitfold.tokens.modes import recording

DROPPED = -1

Fate = Literal["merged", "dropped", "mixed"]


def take(x: Tensor, index: Tensor) -> Tensor:
    """The rows of `x[B, N]` or `x[B, N, C]` at `index[B, n]`, image by image."""
    if x.dim() == 2:
        return x.gather(1, index)
    return kernels.active(x).take(x, index)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A hard assignment of `N` tokens to `slots` slots.

    keep: `[B, slots]` the token that gives each slot its place.
    gone: `[B, N - slots]` the tokens that lose theirs.
    into: `[B, N - slots]` the slot that each of those goes into, or -1.
    fate: what may happen to the gone, known without looking at the data.
    weight: `[B, N]` what counts in the mean of a slot, above zero; None: sizes.
    """

    keep: Tensor
    gone: Tensor
    into: Tensor
    fate: Fate = "merged"
    weight: Tensor | None = None

    @classmethod
    def identity(cls, batch: int, tokens: int, device: torch.device | None = None) -> "TokenMap":
        """The map in which every token keeps its place."""
        keep = torch.arange(tokens, device=device).expand(batch, -1)
        return cls(keep, keep[:, :0], keep[:, :0])

    @classmethod
    def dropping(cls, keep: Tensor, gone: Tensor) -> "TokenMap":
        """The tokens `keep[B, n]` stay, the tokens `gone[B, r]` go nowhere."""
        return cls(keep, gone, torch.full_like(gone, DROPPED), "dropped")

    @classmethod
    def from_parent(cls, parent: Tensor, order: Tensor | None = None) -> "TokenMap":
        """From `parent[B, N]`: itself, the surviving token that it becomes, or -1 for dropped.

        `order[N]` lists the positions in the order in which survivors rank (default: as they
        stand). Every image must lose the same number of tokens.
        """
        tokens = parent.shape[1]
        places = torch.arange(tokens, device=parent.device).expand_as(parent)
        order = places[0] if order is None else order
        survives = parent == places
        ranked = order[kernels.active(parent).order((~survives)[:, order].int(), False, 0.0, None)]
        slots = int(survives.sum()) // max(len(parent), 1)
        keep, gone = ranked[:, :slots], ranked[:, slots:].sort(dim=1).values
        rank = torch.empty_like(parent).scatter(1, ranked, places)
        target = parent.gather(1, gone)
        into = rank.gather(1, target.clamp(min=0)).where(target >= 0, DROPPED)
        return cls(keep, gone, into, "mixed")

    @property
    def tokens(self) -> int:
        """N: how many tokens go in."""
        return self.keep.shape[1] + self.gone.shape[1]

    @property
    def slots(self) -> int:
        """How many tokens come out."""
        return self.keep.shape[1]

    @property
    def slot(self) -> Tensor:
        """`[B, N]`: the slot of every token, -1 for dropped."""
        slots = torch.arange(self.slots, device=self.keep.device).expand_as(self.keep)
        blank = self.keep.new_empty(self.keep.shape[0], self.tokens)
        return blank.scatter(1, self.keep, slots).scatter(1, self.gone, self.into)

    @property
    def merges(self) -> bool:
        """Whether any slot may hold more than the token that keeps it."""
        return self.fate != "dropped" and self.gone.shape[1] > 0

    def fold(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """The mean of `x[B, N, C]` in every slot, weighted by `size[B, N]` (default: one each)."""
        if not self.merges:
            return take(x, self.keep)
        return self.reduce(x, _ones(x) if size is None else size)[0]

    def fold_sizes(self, size: Tensor) -> Tensor:
        """`[B, slots]`: the summed size of every slot; what is dropped counts nowhere."""
        stay = size.gather(1, self.keep)
        if not self.merges:
            return stay
        into, landed = kernels.landing(self, size.gather(1, self.gone))
        if not recording():
            return stay.scatter_add(1, into, landed)
        add = kernels.active(size).add_rows
        return add(stay.unsqueeze(-1), into, landed.unsqueeze(-1)).squeeze(-1)

    def reduce(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that come out of `x[B, N, C]`, and their sizes."""
        if not self.merges:
            return take(x, self.keep), self.fold_sizes(size)
        weight = size if self.weight is None else self.weight
        rows, total = kernels.active(x).merge(x, weight, self)
        return rows, total if self.weight is None else self.fold_sizes(size)

    def take(self, values: Tensor) -> Tensor:
        """`[B, slots, ...]`: `values[B, N, ...]` of the tokens that keep a slot."""
        return take(values, self.keep)

    def fold_max(self, score: Tensor) -> Tensor:
        """`[B, slots]`: the highest `score[B, N]` of every slot."""
        survivors = score.gather(1, self.keep)
        if not self.merges:
            return survivors
        moved = score.gather(1, self.gone).masked_fill(self.into < 0, float("-inf"))
        return survivors.scatter_reduce(1, self.into.clamp(min=0), moved, "amax")

    def unfold(self, y: Tensor, fill: Tensor | None = None) -> Tensor:
        """`[B, N, C]`: every token shows its slot's row of `y[B, slots, C]`; the dropped show
        `fill`, which broadcasts to that shape (default: zeros)."""
        slot = self.slot
        if self.fate == "merged":
            return take(y, slot)
        blank = y.new_zeros(()) if fill is None else fill
        return take(y, slot.clamp(min=0)).where((slot >= 0).unsqueeze(-1), blank)

    def in_order(self) -> "TokenMap":
        """This map with slots in the order of the tokens that keep them."""
        keep, order = self.keep.sort(dim=1)
        slots = torch.arange(self.slots, device=keep.device).expand_as(order)
        rank = torch.empty_like(order).scatter(1, order, slots)
        into = rank.gather(1, self.into.clamp(min=0)).where(self.into >= 0, DROPPED)
        return replace(self, keep=keep, into=into)

    def then(self, second: "TokenMap") -> "TokenMap":
        """This map followed by `second`, which starts from this one's slots. What becomes of which
        token; means over the slots are again by size."""
        moved = second.slot.gather(1, self.into.clamp(min=0))
        return TokenMap(
            keep=self.keep.gather(1, second.keep),
            gone=torch.cat([self.gone, self.keep.gather(1, second.gone)], dim=1),
            into=torch.cat([moved.where(self.into >= 0, DROPPED), second.into], dim=1),
            fate=self._joint_fate(second),
        )

    def _joint_fate(self, second: "TokenMap") -> Fate:
        fates = {m.fate for m in (self, second) if m.gone.shape[1]}
        return fates.pop() if len(fates) == 1 else "mixed" if fates else "merged"


def _ones(x: Tensor) -> Tensor:
    """`[B, N]` ones in at least float32: sums of them are counts."""
    return x.new_ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class PackedMap:
    """A `TokenMap` in which every image has its own number of slots.

    flat: from the tokens of all images, one image after another, to the slots of all images.
    lengths: how many slots each image has.
    before: how many tokens each image had; None where all had as many.
    """

    flat: TokenMap
    lengths: tuple[int, ...]
    before: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        """N: how many tokens of each image go in; where those differ, of the one with most."""
        if self.before is not None:
            return max(self.before, default=0)
        return self.flat.tokens // max(len(self.lengths), 1)

    @property
    def slots(self) -> int:
        """How many tokens come out where most do."""
        return max(self.lengths, default=0)

    @property
    def fate(self) -> Fate:
        """What may happen to the tokens that are gone."""
        return self.flat.fate

    @property
    def slot(self) -> Tensor:
        """`[B, N]`: the slot of every token in its own image, -1 for dropped and for padding."""
        slot = self._apart(self.flat.slot, DROPPED)
        first = ragged.starts(torch.tensor(self.lengths, device=slot.device)).unsqueeze(1)
        return torch.where(slot >= 0, slot - first, DROPPED)

    def fold(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """`[B, slots, C]`: the mean of `x[B, N, C]` in every slot, zeros where there is none."""
        flat = None if size is None else self._flat(size)
        return ragged.pad(self.flat.fold(self._flat(x), flat), _here(self.lengths, x))

    def fold_sizes(self, size: Tensor) -> Tensor:
        """`[B, slots]`: the summed size of every slot."""
        return ragged.pad(self.flat.fold_sizes(self._flat(size)), _here(self.lengths, size))

    def unfold(self, y: Tensor) -> Tensor:
        """`[B, N, C]`: every token shows its slot's row of `y[B, slots, C]`, the dropped zeros."""
        return self._apart(self.flat.unfold(y[_here(self.lengths, y)].unsqueeze(0)))

    def then(self, second: "PackedMap") -> "PackedMap":
        """This map followed by `second`, which starts from this one's slots."""
        return PackedMap(self.flat.then(second.flat), second.lengths, self.before)

    def take(self, values: Tensor) -> Tensor:
        """`[1, T, ...]`: values, of all tokens, of those that keep a slot."""
        return take(in_one_row(values), self.flat.keep)

    def fold_max(self, score: Tensor) -> Tensor:
        """`[1, T]`: the highest score of every slot."""
        return self.flat.fold_max(in_one_row(score))

    def _flat(self, x: Tensor) -> Tensor:
        """The tokens of all images one after another."""
        return one_image(x) if self.before is None else x[_here(self.before, x)].unsqueeze(0)

    def _apart(self, x: Tensor, fill: int = 0) -> Tensor:
        """The images again, each with all of its tokens."""
        if self.before is None:
            return apart(x, len(self.lengths))
        return ragged.pad(x, _here(self.before, x), fill)


def _here(lengths: tuple[int, ...], like: Tensor) -> Tensor:
    """`[B, longest]`: which places of a padded row an image has."""
    return ragged.table(torch.tensor(lengths, device=like.device))[1]


def in_one_row(x: Tensor) -> Tensor:
    """`[1, T, ...]`: tokens that lie one image after another, or beside each other."""
    return x if x.shape[0] == 1 else one_image(x)


def one_image(x: Tensor) -> Tensor:
    """All tokens of `x[B, N, C]` as those of one image."""
    return x.flatten(0, 1).unsqueeze(0)


def apart(x: Tensor, batch: int) -> Tensor:
    """The images again, each with all of its tokens."""
    return x[0].view(batch, x.shape[1] // max(batch, 1), *x.shape[2:])
