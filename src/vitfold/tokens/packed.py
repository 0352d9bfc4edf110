"""The state of images that each keep their own number of tokens.

The tokens of all images lie one after another, `[1, T, C]`, as if they were those of one image: so
linear layers and norms see no padding, and a `TokenMap` of one image describes what leaves.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.tokens import ragged
from vitfold.tokens import threshold as matching
from vitfold.tokens.layout import Grid
from vitfold.tokens.match import NOWHERE
from vitfold.tokens.state import Change, TokenState, four, pick
from vitfold.tokens.threshold import Pairs
from vitfold.tokens.tokenmap import DROPPED, PackedMap, TokenMap, apart, in_one_row, one_image, take


@dataclass(frozen=True, eq=False)
class Packed(TokenState):
    """Tokens `[1, T, C]`: `size`, `origin` and `maps` are those of one image, whose original tokens
    are all of the batch.

    lengths: how many tokens each image has.
    originals: how many each had before the first block.
    beside: whether dense tokens lie beside each other, `[B, N, C]`, or one image after another.

    What follows from lengths is worked out anew where it is needed: states live as long as their
    forward does.
    """

    form: ClassVar[str] = "packed"

    lengths: tuple[int, ...] = field(kw_only=True)
    originals: tuple[int, ...] = field(kw_only=True)
    beside: bool = True

    @classmethod
    def of(cls, state: TokenState) -> "Packed":
        """The packed state of dense tokens, from which some may have left; padding leaves too."""
        batch, tokens = state.batch, state.tokens
        whole = (tokens,) * batch
        start = cls(**state.frame, notes=state.notes, lengths=whole, originals=whole)
        if state.changed:
            size = None if state.size is None else one_image(state.size)
            start = start._then(_one_map(state.whole), (state.length,) * batch, size)
        if state.valid is None:
            return start
        rows = start.table[0]
        padding = TokenMap.dropping(rows[state.valid][None], rows[~state.valid][None])
        size = start.size if start.size is None else start.size.gather(1, padding.keep)
        return start._then(padding, tuple(state.counts), size)

    @classmethod
    def start(cls, x: Tensor, prefix: int, grid: Grid | None, lengths: Sequence[int]) -> "Packed":
        """The packed state of images with lengths of their own from the first block on, `x[1, T,
        C]`."""
        lengths = tuple(lengths)
        return cls(
            max(lengths, default=0),
            prefix,
            grid,
            batch=len(lengths),
            device=x.device,
            dtype=torch.promote_types(x.dtype, torch.float32),
            lengths=lengths,
            originals=lengths,
            beside=False,
        )

    @property
    def length(self) -> int:
        return sum(self.lengths)

    @property
    def dense_length(self) -> int:
        return self.tokens if self.beside else sum(self.originals)

    @property
    def shape(self) -> tuple[int, int]:
        return 1, self.length

    @property
    def counts(self) -> list[int]:
        return list(self.lengths)

    @property
    def starts(self) -> list[int]:
        """Where each image begins, and where the last one ends."""
        return list(itertools.accumulate(self.lengths, initial=0))

    @property
    def numbers(self) -> Tensor:
        """`[B]`: how many tokens each image has."""
        return torch.tensor(self.lengths, device=self.device)

    @property
    def table(self) -> tuple[Tensor, Tensor]:
        """`[B, longest]`: the tokens of each image, and which of those places hold one."""
        return ragged.table(self.numbers)

    @property
    def owners(self) -> Tensor:
        """`[T]`: the image of every token."""
        return ragged.owners(self.numbers, self.length)

    def places(self) -> Tensor:
        originals = torch.tensor(self.originals, device=self.device)
        first = ragged.starts(originals)[self.owners]
        origin = torch.arange(self.length, device=self.device)
        return ((origin if self.origin is None else self.origin[0]) - first).unsqueeze(0)

    def ranks(self) -> Tensor:
        places = torch.arange(self.length, device=self.device)
        return (places - ragged.starts(self.numbers)[self.owners]).unsqueeze(0)

    def positions(self, table: Tensor, still: Tensor | None = None) -> Tensor:
        """`[1, 1 or H, T, D]`, for all tokens of now: prefix tokens get the row `still`. Where the
        images come packed, so does the table, with a row for every token."""
        table = four(table)
        if self.beside:
            blank = table.new_zeros(()) if still is None else still.to(table.dtype)
            rows = blank.expand(*table.shape[:2], self.prefix, table.shape[-1])
            full = torch.cat([rows, table], dim=2).expand(self.batch, -1, -1, -1)
            table = full.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        return table if self.origin is None else table[:, :, self.origin[0]]

    def bias(self, mask: Tensor, image: int) -> Tensor:
        """`[1, 1 or H, n or 1, n]`: a bias over original tokens, for those of one image."""
        mask = four(mask)
        mask = mask[image : image + 1] if mask.shape[0] > 1 else mask
        if self.origin is None:
            return mask
        start, end = self.starts[image : image + 2]
        place = self.places()[:, start:end]
        return pick(pick(mask, place, -1), place, -2)

    def biases(self, mask: Tensor) -> Tensor:
        """`[B, 1 or H, longest or 1, longest]`: a bias over original tokens, for those of all
        images, each in a padded row of its own."""
        place = self.places()[0][self.table[0]]
        return pick(pick(four(mask), place, -1), place, -2)

    @property
    def whole(self) -> PackedMap:
        before = None if self.beside else self.originals
        return PackedMap(self._flat(), self.lengths, before)

    def _flat(self) -> TokenMap:
        """The map from the original tokens of all images to those of now."""
        if not self.maps:
            return TokenMap.identity(1, self.length, self.device)
        return functools.reduce(TokenMap.then, self.maps)

    def fold(self, x: Tensor) -> Tensor:
        x = one_image(x) if self.beside else x
        return x if self.origin is None else take(x, self.origin)

    def unfold(self, x: Tensor) -> Tensor:
        if self.maps:
            flat = self._flat()
            x = flat.unfold(x, None if flat.fate == "merged" else self._mean(x))
        return apart(x, self.batch) if self.beside else x

    def _mean(self, x: Tensor) -> Tensor:
        """`[1, T, C]`: the mean of the surviving patches of every original token's image."""
        patch = self.places()[0] >= self.prefix
        weight = (self.sizes()[0] * patch).unsqueeze(1)
        rows = torch.cat([x[0] * weight, weight], dim=1)  # counts in bfloat16 would be none
        total = rows.new_zeros(self.batch, rows.shape[1]).index_add(0, self.owners, rows)
        mean = (total[:, :-1] / total[:, -1:].clamp(min=1e-6)).to(x.dtype)
        originals = torch.tensor(self.originals, device=self.device)
        return mean[ragged.owners(originals, sum(self.originals))].unsqueeze(0)

    def padded(self, x: Tensor) -> tuple[Tensor, TokenState]:
        rows, here = self.table
        size = ragged.pad(self.sizes(), here)
        state = Padded(
            **self.frame,
            size=size,
            origin=rows,
            maps=self.maps,
            valid=here,
            notes=self.notes,
            packed=self,
        )
        return ragged.pad(in_one_row(x), here), state

    def level(self, x: Tensor) -> tuple[Tensor, TokenState]:
        return self.padded(x) if self.beside else (x, self)

    def apply(self, x: Tensor, change: Change) -> tuple[Tensor, TokenState]:
        x = in_one_row(x)
        if isinstance(change, TokenMap):
            change = self._from_padded(change)
        assert isinstance(change, PackedMap)  # a packed state decides nothing else
        flat = change.flat
        if not flat.gone.shape[1]:
            return x, self
        if self.size is None and not flat.merges:
            return flat.fold(x), self._then(flat, change.lengths, None)
        x, size = flat.reduce(x, self.sizes())
        return x, self._then(flat, change.lengths, size)

    def ordered(self, x: Tensor, order: Tensor) -> tuple[Tensor, TokenState]:
        change = TokenMap(order, order[:, :0], order[:, :0])
        return take(x, order), self._then(change, self.lengths, None)

    def _then(self, step: TokenMap, lengths: tuple[int, ...], size: Tensor | None) -> "Packed":
        origin = step.keep if self.origin is None else self.origin.gather(1, step.keep)
        return replace(self, size=size, origin=origin, maps=(*self.maps, step), lengths=lengths)

    def _from_padded(self, step: TokenMap) -> PackedMap:
        """A map over the rows that `padded` gives, over packed tokens."""
        rows, here = self.table
        kept, lost = here.gather(1, step.keep), here.gather(1, step.gone)
        slot = (kept.flatten().cumsum(0) - 1).view_as(kept)
        into = slot.gather(1, step.into.clamp(min=0)).where(step.into >= 0, DROPPED)
        flat = TokenMap(
            rows.gather(1, step.keep)[kept].unsqueeze(0),
            rows.gather(1, step.gone)[lost].unsqueeze(0),
            into[lost].unsqueeze(0),
            step.fate,
            None if step.weight is None else step.weight[here].unsqueeze(0),
        )
        return PackedMap(flat, tuple(kept.sum(dim=1).tolist()), self.lengths)

    def alone(self, x: Tensor) -> tuple[Tensor, TokenState]:
        return in_one_row(x), self

    def pairs(self, metric: Tensor, by_size: bool = False, after: Change | None = None) -> Pairs:
        state, metric = self, in_one_row(metric)
        if isinstance(after, PackedMap):
            state, metric = self._after(after), after.take(metric)
        rows, here = state.table
        size = state.sizes()[0][rows] if by_size else None
        pairs = matching.pairs(metric[0][rows], here, self.prefix, size)
        return Pairs(pairs.value, rows.gather(1, pairs.even), rows.gather(1, pairs.odd))

    def merge_pairs(
        self,
        pairs: Pairs,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> PackedMap:
        state = self._after(after)
        merges = pairs.above(threshold)
        heads = torch.arange(state.length, device=self.device)
        heads = heads.scatter(0, pairs.even[merges], pairs.odd[merges])
        return state._joining(heads, after)

    def drop_below(
        self,
        score: Tensor,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> PackedMap:
        state, score = self._after(after), in_one_row(score)
        if after is not None:
            score = after.fold_max(score)
        rows, here = state.table
        keep = matching.keeps(score[0][rows], here, self.prefix, threshold)
        return state._dropping(keep[here] > 0.5, after)

    def join(self, heads: Tensor) -> PackedMap:
        first = torch.arange(len(heads), device=self.device).unsqueeze(1) * heads.shape[1]
        return self._joining(in_one_row(heads + first)[0], None)

    def _joining(self, heads: Tensor, after: Change | None) -> PackedMap:
        """The change in which every token becomes part of that at `heads[T]`."""
        stays = heads == torch.arange(self.length, device=self.device)
        keep, gone = stays.nonzero().flatten(), (~stays).nonzero().flatten()
        into = (stays.cumsum(0) - 1)[heads[gone]]
        flat = TokenMap(keep.unsqueeze(0), gone.unsqueeze(0), into.unsqueeze(0))
        return self._following(after, flat)

    def keep(self, keep: Tensor) -> PackedMap:
        return self._dropping(in_one_row(keep)[0] > 0.5, None)

    def keep_best(self, score: Tensor, left: int) -> PackedMap:
        rows, here = self.table
        patches = in_one_row(score)[0][rows].masked_fill(~here, NOWHERE)[:, self.prefix :]
        keep = F.pad(matching.best(patches, left), (self.prefix, 0), value=1.0)
        return self._dropping(keep[here] > 0.5, None)

    def _dropping(self, stays: Tensor, after: Change | None) -> PackedMap:
        places = torch.arange(self.length, device=self.device)
        flat = TokenMap.dropping(places[stays].unsqueeze(0), places[~stays].unsqueeze(0))
        return self._following(after, flat)

    def _following(self, after: Change | None, flat: TokenMap) -> PackedMap:
        """A change of these tokens, and what came before it."""
        left = torch.bincount(self.owners[flat.keep[0]], minlength=self.batch).tolist()
        change = PackedMap(flat, tuple(left), self.lengths)
        return after.then(change) if isinstance(after, PackedMap) else change

    def _after(self, change: Change | None) -> "Packed":
        """The state after a change that is not applied yet."""
        if not isinstance(change, PackedMap):
            return self
        return self._then(change.flat, change.lengths, change.flat.fold_sizes(self.sizes()))


@dataclass(frozen=True, eq=False, kw_only=True)
class Padded(TokenState):
    """Packed tokens in rows as long as the longest image's, padded: `size`, `origin` and `valid`
    are of those rows, `origin` the packed token that lies at each place.

    packed: the state of the tokens as they lie one after another.
    """

    form: ClassVar[str] = "dense"

    packed: Packed

    @property
    def length(self) -> int:
        return max(self.packed.lengths, default=0)

    @property
    def counts(self) -> list[int]:
        return self.packed.counts

    @property
    def whole(self) -> PackedMap:
        return self.packed.whole

    def fold(self, x: Tensor) -> Tensor:
        return self.packed.padded(self.packed.fold(x))[0]

    def unfold(self, x: Tensor) -> Tensor:
        assert self.valid is not None  # it is made with it
        return self.packed.unfold(x[self.valid].unsqueeze(0))


def _one_map(step: TokenMap | PackedMap) -> TokenMap:
    """A map of every image as one of a single image, which has the tokens of all."""
    assert isinstance(step, TokenMap)  # of dense tokens
    first = torch.arange(len(step.keep), device=step.keep.device).unsqueeze(1)
    keep, gone = (one_image(part + first * step.tokens) for part in (step.keep, step.gone))
    into = one_image((step.into + first * step.slots).where(step.into >= 0, DROPPED))
    return TokenMap(keep, gone, into, step.fate)
