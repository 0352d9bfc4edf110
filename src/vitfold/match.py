"""Which token becomes which: a metric in, a `TokenMap` out. Knows no model.

`bipartite` and `windowed` merge what is similar, `lowest` drops what is small. The first `prefix`
tokens take their positions but are never touched. Shapes follow from shapes alone, except where
`valid[B, N]` marks padding: padded images need as many slots as their neighbours, no more.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.tokenmap import DROPPED, TokenMap, take

NOWHERE = float("-inf")


def bipartite(metric: Tensor, r: int, prefix: int, valid: Tensor | None = None) -> TokenMap:
    """Merge the `r` tokens at even positions that most resemble one at an odd position.

    Next come the prefix, the surviving even tokens and the odd ones, each in their order.
    """
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    metric = unit(metric)
    if valid is not None:
        allowed = valid[:, even::2, None] & valid[:, None, odd::2]
        best, partner = best_partners(metric[:, even::2], metric[:, odd::2], allowed)
        target = torch.full_like(valid, DROPPED, dtype=torch.long)
        target[:, even::2] = partner * 2 + odd
        return _with_padding(biggest_first(best) * 2 + even, target, r, prefix, valid, stride=2)
    best, partner = best_partners(metric[:, even::2], metric[:, odd::2])
    order = biggest_first(best)
    merged, stay = order[:, :r], order[:, r:].sort(dim=1).values
    places = _places(metric)
    return TokenMap(
        keep=torch.cat([places[:, :prefix], stay * 2 + even, places[:, odd::2]], dim=1),
        gone=merged * 2 + even,
        into=partner.gather(1, merged) + prefix + stay.shape[1],
    )


def lowest(metric: Tensor, r: int, prefix: int, valid: Tensor | None = None) -> TokenMap:
    """Drop the `r` tokens whose metric has the smallest norm; the others stay in their order."""
    order = biggest_first(-metric[:, prefix:].norm(dim=-1)) + prefix
    if valid is not None:
        target = torch.full_like(valid, DROPPED, dtype=torch.long)
        padding_last = order.gather(1, (~valid).gather(1, order).int().argsort(1, stable=True))
        return _with_padding(padding_last, target, r, prefix, valid, stride=1)
    stay = order[:, r:].sort(dim=1).values
    return TokenMap.dropping(torch.cat([_places(metric)[:, :prefix], stay], dim=1), order[:, :r])


def windowed(metric: Tensor, layout: "Windows", prefix: int, order: Tensor) -> TokenMap:
    """Bipartite matching inside every window of a grid.

    `order[B, n]` lists the patch tokens as they lie on the grid, row by row. Next come the prefix
    and the surviving patches in that order.
    """
    evens, odds, window, place = layout.tensors(metric.device)
    padded = torch.nn.functional.pad(unit(take(metric[:, prefix:], order)), (0, 0, 0, 1))
    a, b = padded[:, evens], padded[:, odds]
    patches = order.shape[1]
    allowed = (evens < patches).unsqueeze(-1) & (odds < patches).unsqueeze(-2)
    best, partner = best_partners(a, b, allowed)
    chosen = biggest_first(best)[:, window, place]
    merged = evens[window, chosen]
    partners = partner.flatten(1).gather(1, window * evens.shape[1] + chosen)
    target = odds[window, partners]
    leaves = torch.zeros_like(order).scatter(1, merged, 1)
    stay = leaves.argsort(dim=1, stable=True)[:, : patches - merged.shape[1]]
    slots = torch.zeros_like(order).scatter(1, stay, _places(stay))
    return TokenMap(
        keep=torch.cat([_places(metric)[:, :prefix], order.gather(1, stay) + prefix], dim=1),
        gone=order.gather(1, merged) + prefix,
        into=slots.gather(1, target) + prefix,
    )


@dataclass(frozen=True)
class Windows:
    """How `patches` tokens lie on a `rows x columns` grid that is cut into square windows.

    The grid is padded at the bottom and the right; at most `each` tokens merge in every window.
    """

    patches: int
    rows: int
    columns: int
    side: int
    each: int

    @functools.cached_property
    def cells(self) -> list[list[int]]:
        """For every window its cells, row by row; `patches` stands for padding."""
        across, down = -(-self.columns // self.side), -(-self.rows // self.side)
        return [self._cells(y, x) for y in range(down) for x in range(across)]

    def _cells(self, y: int, x: int) -> list[int]:
        rows = range(y * self.side, (y + 1) * self.side)
        columns = range(x * self.side, (x + 1) * self.side)
        return [self._cell(row, column) for row in rows for column in columns]

    def _cell(self, row: int, column: int) -> int:
        inside = row < self.rows and column < self.columns
        return min(row * self.columns + column, self.patches) if inside else self.patches

    @functools.cached_property
    def merges(self) -> list[int]:
        """How many tokens merge in every window: at most half of those that lie in it."""
        return [self._merges(cells) for cells in self.cells]

    def _merges(self, cells: list[int]) -> int:
        even = sum(cell < self.patches for cell in cells[0::2])
        odd = sum(cell < self.patches for cell in cells[1::2])
        return min(self.each, even, (even + odd) // 2) if odd else 0

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cells at even and odd places `[windows, half a window]`, and for every merge its window
        and its rank there."""
        window = [w for w, merges in enumerate(self.merges) for _ in range(merges)]
        place = [rank for merges in self.merges for rank in range(merges)]
        cells = torch.tensor(self.cells, device=device)
        on = functools.partial(torch.tensor, dtype=torch.long, device=device)
        return cells[:, 0::2], cells[:, 1::2], on(window), on(place)


def unit(metric: Tensor) -> Tensor:
    """`metric[B, N, d]` with rows of length one; zero and non-finite rows resemble nothing."""
    length = metric.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(metric.dtype).tiny)
    return (metric / length).nan_to_num(0.0, 0.0, 0.0)


def best_partners(a: Tensor, b: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For every row of `a[..., n, d]` its most similar row of `b[..., m, d]`: how similar, which."""
    scores = a @ b.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, NOWHERE)
    best, partner = scores.max(dim=-1)
    return best, partner


def biggest_first(values: Tensor) -> Tensor:
    """Indices along the last axis by falling value; the earlier one first among equals."""
    return values.argsort(dim=-1, descending=True, stable=True)


def _places(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device).expand(like.shape[0], -1)


def _with_padding(
    order: Tensor, target: Tensor, r: int, prefix: int, valid: Tensor, stride: int
) -> TokenMap:
    """The map in which every image loses the first of `order[B, n]`, each to its `target[B, N]`,
    as many as it would lose without padding, and makes up the rest with its last padding."""
    places = _places(valid)
    quota = ((valid.sum(1, keepdim=True) - prefix) // 2).clamp(max=r)
    rank = torch.full_like(target, valid.shape[1]).scatter(1, order, _places(order))
    chosen = (rank < quota) & valid
    from_end = (~valid).flip(1).cumsum(1).flip(1)
    spare = ~valid & (from_end <= r - quota)
    group = torch.where(places < prefix, -1, places % stride).where(valid, stride)
    ranked = group.where(~(chosen | spare), stride + 1).argsort(dim=1, stable=True)
    slots = valid.shape[1] - r
    gone = ranked[:, slots:]
    slot = torch.zeros_like(target).scatter(1, ranked, places)
    goal = target.gather(1, gone).where(chosen.gather(1, gone), DROPPED)
    into = slot.gather(1, goal.clamp(min=0)).where(goal >= 0, DROPPED)
    return TokenMap(ranked[:, :slots], gone, into, "mixed")
