"""Which token becomes which: a metric in, a `TokenMap` out. Knows no model.

`bipartite` and `windowed` merge what is similar, `lowest` drops what is small. The first `prefix`
tokens take their positions but are never touched. Shapes follow from shapes alone, except where
`valid[B, N]` marks padding: padded images need as many slots as their neighbours, no more.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.tokens import kernels
from vitfold.tokens.constants import constant
from vitfold.tokens.kernels import NOWHERE, Side
from vitfold.tokens.modes import compiling, recording
from vitfold.tokens.tokenmap import DROPPED, Fate, TokenMap, take

__all__ = [
    "NOWHERE",
    "Windows",
    "biggest_first",
    "bipartite",
    "by_product",
    "by_ratio",
    "highest",
    "joining",
    "lowest",
    "smallest_first",
    "unit",
    "windowed",
    "windows_of",
]


def bipartite(
    metric: Tensor,
    r: int,
    prefix: int,
    valid: Tensor | None = None,
    size: Tensor | None = None,
) -> TokenMap:
    """Merge the `r` tokens at even positions that most resemble one at an odd position.

    Where any do, next come the prefix, the surviving even tokens and the odd ones, each in their
    order.
    size: `[B, N]`; where it is given, large groups have to resemble each other more.
    """
    if not r:
        return TokenMap.identity(metric.shape[0], metric.shape[1], metric.device)
    return by_product(unit(metric), r, prefix, valid, size)


def by_product(
    rows: Tensor, r: int, prefix: int, valid: Tensor | None = None, size: Tensor | None = None
) -> TokenMap:
    """As `bipartite`, where tokens resemble each other by the product of their `rows[B, N, d]`, of
    whatever length those are."""
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    a, b = _every_other(even, rows, size, valid), _every_other(odd, rows, size, valid)
    active = kernels.active(rows)
    nearest = active.nearest(a, b)
    margin = kernels.rounding(nearest.best)
    if valid is not None:
        order = active.order(nearest.best, True, margin, None)
        target = torch.full_like(valid, DROPPED, dtype=torch.long)
        target[:, even::2] = nearest.partner(None) * 2 + odd
        return _with_padding(order * 2 + even, target, r, prefix, valid, stride=2)
    order = active.order(nearest.best, True, margin, r)
    partner = nearest.partner(order[:, :r])  # only those that merge need to know
    evens, (first, odds) = order * 2 + even, _around(rows, prefix, odd)
    stay = evens[:, r:].sort(dim=1).values
    return TokenMap(
        keep=torch.cat([first, stay, odds], dim=1),
        gone=evens[:, :r],
        into=partner + (prefix + stay.shape[1]),
    )


def _around(metric: Tensor, prefix: int, odd: int) -> tuple[Tensor, ...]:
    """The places of a prefix, and those at odd positions, of all images."""
    batch, tokens = metric.shape[:2]

    def make(device: torch.device) -> tuple[Tensor, Tensor]:
        places = torch.arange(tokens, device=device).expand(batch, -1)
        return places[:, :prefix], places[:, odd::2]

    return constant((batch, tokens, prefix, odd), metric, make)


def _every_other(first: int, rows: Tensor, size: Tensor | None, valid: Tensor | None) -> Side:
    """The tokens at every other position from the first one on."""
    size = None if size is None else size[:, first::2]
    valid = None if valid is None else valid[:, first::2]
    return Side(rows[:, first::2], size, valid)


def lowest(values: Tensor, r: int, prefix: int, valid: Tensor | None = None) -> TokenMap:
    """Drop the `r` tokens of the smallest `values[B, N]`, none below zero; the others stay in their
    order."""
    cut = r if valid is None else None
    order = smallest_first(*by_ratio(values[:, prefix:]), cut) + prefix
    if valid is not None:
        target = torch.full_like(valid, DROPPED, dtype=torch.long)
        padding_last = order.gather(1, smallest_first((~valid).gather(1, order).int()))
        return _with_padding(padding_last, target, r, prefix, valid, stride=1)
    stay = order[:, r:].sort(dim=1).values
    return TokenMap.dropping(torch.cat([_places(values)[:, :prefix], stay], dim=1), order[:, :r])


def highest(score: Tensor, r: int, prefix: int, fused: Tensor | None = None) -> TokenMap:
    """Keep the prefix, the patches of highest `score[B, N]` in their order and, if the others fuse,
    one token of them, weighted by `fused[B, N]`, so that `r` fewer are left."""
    order = biggest_first(score[:, prefix:], kernels.rounding(score)) + prefix
    count = order.shape[1] - r - int(fused is not None)
    stay = torch.cat([_places(score)[:, :prefix], order[:, :count].sort(dim=1).values], dim=1)
    if fused is None:
        return TokenMap.dropping(stay, order[:, count:])
    keep = torch.cat([stay, order[:, count : count + 1]], dim=1)
    gone = order[:, count + 1 :]
    weight = fused.clamp(min=torch.finfo(fused.dtype).tiny)
    return TokenMap(keep, gone, torch.full_like(gone, prefix + count), weight=weight)


def joining(gone: Tensor, target: Tensor, tokens: int, fate: Fate = "merged") -> TokenMap:
    """The map of so many tokens in which `gone[B, r]` go into the tokens `target[B, r]`, or nowhere
    where that is -1, and the others stay in their order."""
    every = torch.arange(tokens, device=gone.device).expand(gone.shape[0], -1)
    leaves_last = every.scatter(1, gone, tokens)
    keep = leaves_last.sort(dim=1).values[:, : tokens - gone.shape[1]]
    slots = torch.zeros_like(every).scatter(1, keep, every[:, : keep.shape[1]])
    into = slots.gather(1, target.clamp(min=0)).where(target >= 0, DROPPED)
    return TokenMap(keep, gone, into, fate)


def windowed(metric: Tensor, layout: "Windows", prefix: int, order: Tensor) -> TokenMap:
    """Bipartite matching inside every window of a grid.

    `order[B, n]` lists the patch tokens as they lie on the grid, row by row. Next come the prefix
    and the surviving patches in that order.
    """
    evens, odds, even_here, odd_here, window, place = layout.tensors(metric)
    patches, half = layout.patches, evens.shape[1]
    rows, tokens = unit(metric), F.pad(order, (0, 1)) + prefix
    a = _in_windows(evens, rows, tokens, even_here if layout.padded else None)
    b = _in_windows(odds, rows, tokens, odd_here if layout.padded else None)
    nearest = kernels.active(metric).nearest(a, b)
    ranked = biggest_first(nearest.best, kernels.rounding(nearest.best)).flatten(1)
    pairs = window * half + ranked[:, window * half + place]
    target = odds.flatten()[window * odds.shape[1] + nearest.partner(pairs)]
    merged = evens.flatten()[pairs]
    leaves_last = _places(order).scatter(1, merged, patches)
    stay = leaves_last.sort(dim=1).values[:, : patches - merged.shape[1]]
    slots = torch.zeros_like(order).scatter(1, stay, _places(stay))
    return TokenMap(
        keep=torch.cat([_places(metric)[:, :prefix], order.gather(1, stay) + prefix], dim=1),
        gone=order.gather(1, merged) + prefix,
        into=slots.gather(1, target) + prefix,
    )


def _in_windows(cells: Tensor, rows: Tensor, tokens: Tensor, here: Tensor | None) -> Side:
    """The tokens in some cells of every window, from `tokens[B, patches + 1]` by cell."""
    inside = take(rows, tokens[:, cells.flatten()]).unflatten(1, cells.shape)
    return Side(inside, here=here)


@dataclass(frozen=True)
class Windows:
    """A grid of patches cut into square windows, padded at the bottom and the right.

    patches: how many there are; a cell of that number is padding.
    columns: of the grid.
    cells: for every window its cells, row by row.
    merges: for every window how many of its tokens merge.
    """

    patches: int
    columns: int
    cells: tuple[tuple[int, ...], ...]
    merges: tuple[int, ...]

    @classmethod
    def cut(cls, patches: int, rows: int, columns: int, side: int, r: int) -> "Windows":
        """`patches` cells of a `rows x columns` grid in windows of `side x side`, which share `r`
        merges evenly; in each at most half of its tokens merge."""
        corners = [(y, x) for y in range(0, rows, side) for x in range(0, columns, side)]
        cells = tuple(_cells(*corner, side, rows, columns, patches) for corner in corners)
        each = -(-r // max(len(cells), 1))
        return cls(patches, columns, cells, tuple(_merges(c, patches, each) for c in cells))

    @property
    def padded(self) -> bool:
        """Whether any cell is padding."""
        return sum(map(len, self.cells)) > self.patches

    def tensors(self, like: Tensor) -> tuple[Tensor, ...]:
        """Cells at even and at odd places `[windows, half a window]`, which of them are patches,
        and for every merge its window and its rank there."""
        return constant(self, like, self._tensors)

    def _tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        window = [w for w, merges in enumerate(self.merges) for _ in range(merges)]
        rank = [i for merges in self.merges for i in range(merges)]
        merges = torch.tensor([window, rank], device=device)
        sides = [[cells[side::2] for cells in self.cells] for side in (0, 1)]
        evens, odds = (torch.tensor(cells, device=device) for cells in sides)
        return evens, odds, evens < self.patches, odds < self.patches, merges[0], merges[1]


def windows_of(patches: int, rows: int, columns: int, side: int, r: int) -> Windows:
    """`Windows.cut`, done once for the same numbers."""
    cut = Windows.cut if compiling() else _cut
    return cut(patches, rows, columns, side, r)


_cut = functools.lru_cache(maxsize=256)(Windows.cut)


def _cells(y: int, x: int, side: int, rows: int, columns: int, patches: int) -> tuple[int, ...]:
    return tuple(
        min(row * columns + column, patches) if row < rows and column < columns else patches
        for row in range(y, y + side)
        for column in range(x, x + side)
    )


def _merges(cells: tuple[int, ...], patches: int, each: int) -> int:
    even = sum(cell < patches for cell in cells[0::2])
    odd = sum(cell < patches for cell in cells[1::2])
    return min(each, even, (even + odd) // 2) if odd else 0


def unit(metric: Tensor) -> Tensor:
    """Rows of length one. Zero and non-finite rows become zero, and so resemble nothing; in a
    program for other runtimes the latter stay, as looking for them takes half a dozen steps."""
    length = torch.linalg.vector_norm(metric, dim=-1, keepdim=True)
    rows = metric.div(length.clamp(min=torch.finfo(metric.dtype).tiny))
    return rows if recording() else rows.nan_to_num_(0.0, 0.0, 0.0)


def biggest_first(values: Tensor, margin: float = 0.0) -> Tensor:
    """Indices along the last axis by falling value; the earlier one first among equals, which are
    no further apart than the margin."""
    return kernels.active(values).order(values, True, margin, None)


def smallest_first(values: Tensor, margin: float = 0.0, cut: int | None = None) -> Tensor:
    """Indices along the last axis by rising value; the earlier one first among equals. With a
    `cut`, it only counts which come before that place."""
    return kernels.active(values).order(values, False, margin, cut)


def by_ratio(values: Tensor) -> tuple[Tensor, float]:
    """Values above zero in a form in which those that are equal but for rounding lie close, by how
    much; of any size."""
    margin = kernels.rounding(values)
    return (values.log(), margin) if margin else (values, 0.0)


def _places(like: Tensor) -> Tensor:
    batch, tokens = like.shape[:2]

    def make(device: torch.device) -> tuple[Tensor]:
        return (torch.arange(tokens, device=device).expand(batch, -1),)

    return constant((batch, tokens), like, make)[0]


def _with_padding(
    order: Tensor, target: Tensor, r: int, prefix: int, valid: Tensor, stride: int
) -> TokenMap:
    """The map in which every image loses the first of `order[B, n]`, each to its `target[B, N]`,
    as many as it would lose without padding, and makes up the rest with its last padding."""
    places = _places(valid)
    quota = ((valid.sum(1, keepdim=True) - prefix) // 2).clamp(max=r)
    rank = torch.full_like(target, valid.shape[1]).scatter(1, order, _places(order))
    leaves = (rank < quota) & valid
    from_end = (~valid).flip(1).cumsum(1).flip(1)
    spare = ~valid & (from_end <= r - quota)
    group = torch.where(places < prefix, -1, places % stride).where(valid, stride)
    ranked = smallest_first(group.where(~(leaves | spare), stride + 1))
    slots = valid.shape[1] - r
    gone = ranked[:, slots:]
    slot = torch.zeros_like(target).scatter(1, ranked, places)
    goal = target.gather(1, gone).where(leaves.gather(1, gone), DROPPED)
    into = slot.gather(1, goal.clamp(min=0)).where(goal >= 0, DROPPED)
    return TokenMap(ranked[:, :slots], gone, into, "mixed")
