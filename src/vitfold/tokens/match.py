"""Which token becomes which: a metric in, a `TokenMap` out. Knows no model.

`bipartite` and `windowed` merge what is similar, `lowest` drops what is small. The first `prefix`
tokens take their positions but are never touched. Shapes follow from shapes alone, except where
`valid[B, N]` marks padding: padded images need as many slots as their neighbours, no more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.tokens.modes import compiling
from vitfold.tokens.tokenmap import DROPPED, TokenMap, take

NOWHERE = float("-inf")


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
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    rows = unit(metric)
    scores = torch.bmm(rows[:, even::2], rows[:, odd::2].transpose(1, 2))
    if size is not None:
        scores = harder_for_large(scores, size[:, even::2], size[:, odd::2])
    if valid is not None:
        allowed = valid[:, even::2, None] & valid[:, None, odd::2]
        best, partner = best_allowed(scores, allowed)
        target = torch.full_like(valid, DROPPED, dtype=torch.long)
        target[:, even::2] = partner * 2 + odd
        return _with_padding(biggest_first(best) * 2 + even, target, r, prefix, valid, stride=2)
    order = biggest_first(scores.amax(dim=-1))
    partner = take(scores, order[:, :r]).argmax(dim=-1)  # only those that merge need to know
    evens, places = order * 2 + even, _places(metric)
    stay = evens[:, r:].sort(dim=1).values
    return TokenMap(
        keep=torch.cat([places[:, :prefix], stay, places[:, odd::2]], dim=1),
        gone=evens[:, :r],
        into=partner + (prefix + stay.shape[1]),
    )


def lowest(values: Tensor, r: int, prefix: int, valid: Tensor | None = None) -> TokenMap:
    """Drop the `r` tokens of the smallest `values[B, N]`; the others stay in their order."""
    order = smallest_first(values[:, prefix:]) + prefix
    if valid is not None:
        target = torch.full_like(valid, DROPPED, dtype=torch.long)
        padding_last = order.gather(1, smallest_first((~valid).gather(1, order).int()))
        return _with_padding(padding_last, target, r, prefix, valid, stride=1)
    stay = order[:, r:].sort(dim=1).values
    return TokenMap.dropping(torch.cat([_places(values)[:, :prefix], stay], dim=1), order[:, :r])


def highest(score: Tensor, r: int, prefix: int, fuse: bool = False) -> TokenMap:
    """Keep the prefix, the patches of highest `score[B, N]` in their order and, if the others fuse,
    one token of them, so that `r` fewer are left. Fused patches weigh as much as their scores."""
    order = biggest_first(score[:, prefix:]) + prefix
    kept = order.shape[1] - r - int(fuse)
    stay = torch.cat([_places(score)[:, :prefix], order[:, :kept].sort(dim=1).values], dim=1)
    if not fuse:
        return TokenMap.dropping(stay, order[:, kept:])
    keep = torch.cat([stay, order[:, kept : kept + 1]], dim=1)
    gone = order[:, kept + 1 :]
    weight = score.clamp(min=torch.finfo(score.dtype).tiny)
    return TokenMap(keep, gone, torch.full_like(gone, prefix + kept), weight=weight)


def windowed(metric: Tensor, layout: "Windows", prefix: int, order: Tensor) -> TokenMap:
    """Bipartite matching inside every window of a grid.

    `order[B, n]` lists the patch tokens as they lie on the grid, row by row. Next come the prefix
    and the surviving patches in that order.
    """
    evens, odds, window, place = layout.tensors(metric)
    patches, half = layout.patches, evens.shape[1]
    rows, tokens = unit(metric), torch.nn.functional.pad(order, (0, 1)) + prefix
    a, b = (take(rows, tokens[:, c.flatten()]).unflatten(1, c.shape) for c in (evens, odds))
    scores = a @ b.transpose(-1, -2)
    if layout.padded:
        allowed = (evens < patches).unsqueeze(-1) & (odds < patches).unsqueeze(-2)
        scores = scores.masked_fill(~allowed, NOWHERE)
    best = window * half + biggest_first(scores.amax(dim=-1))[:, window, place]
    partner = take(scores.flatten(1, 2), best).argmax(dim=-1)  # only those that merge need to know
    merged, target = evens.flatten()[best], odds[window, partner]
    leaves_last = _places(order).scatter(1, merged, patches)
    stay = leaves_last.sort(dim=1).values[:, : patches - merged.shape[1]]
    slots = torch.zeros_like(order).scatter(1, stay, _places(stay))
    return TokenMap(
        keep=torch.cat([_places(metric)[:, :prefix], order.gather(1, stay) + prefix], dim=1),
        gone=order.gather(1, merged) + prefix,
        into=slots.gather(1, target) + prefix,
    )


Places = tuple[Tensor, Tensor, Tensor, Tensor]


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
        return any(max(cells) >= self.patches for cells in self.cells)

    def tensors(self, like: Tensor) -> Places:
        """Cells at even and odd places `[windows, half a window]`, and for every merge its window
        and its rank there. Made once for a device, but in graphs and for tensors without values."""
        if compiling() or type(like) is not Tensor:
            return self._tensors(like.device)
        known = self, like.device
        if known not in _PLACES:
            if len(_PLACES) >= MOST_PLACES:
                _PLACES.clear()
            with torch.inference_mode(False):  # they may be used in training later
                _PLACES[known] = self._tensors(like.device)
        return _PLACES[known]

    def _tensors(self, device: torch.device) -> Places:
        window = [w for w, merges in enumerate(self.merges) for _ in range(merges)]
        rank = [i for merges in self.merges for i in range(merges)]
        cells = torch.tensor(self.cells, device=device)
        places = torch.tensor([window, rank], device=device)
        return cells[:, 0::2], cells[:, 1::2], places[0], places[1]


_PLACES: dict[tuple[Windows, torch.device], Places] = {}

MOST_PLACES = 256
"""Of how many windows tensors are kept."""


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


def harder_for_large(cosine: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Minus the distance `1 - cosine[B, n, m]` between groups of `a[B, n]` and `b[B, m]` tokens,
    times the root of `a b / (a + b)`."""
    share = (a.reciprocal().unsqueeze(-1) + b.reciprocal().unsqueeze(-2)).rsqrt()
    return (cosine - 1) * share.to(cosine.dtype)


def best_allowed(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """For every row of `scores[..., n, m]` the highest that is allowed, and where it is."""
    best, partner = scores.masked_fill(~allowed, NOWHERE).max(dim=-1)
    return best, partner


def unit(metric: Tensor) -> Tensor:
    """Rows of length one. Zero and non-finite rows become zero, and so resemble nothing."""
    length = torch.linalg.vector_norm(metric, dim=-1, keepdim=True)
    return metric.div(length.clamp(min=torch.finfo(metric.dtype).tiny)).nan_to_num_(0.0, 0.0, 0.0)


def biggest_first(values: Tensor) -> Tensor:
    """Indices along the last axis by falling value; the earlier one first among equals."""
    return _order(values, descending=True)


def smallest_first(values: Tensor) -> Tensor:
    """Indices along the last axis by rising value; the earlier one first among equals."""
    return _order(values, descending=False)


def _order(values: Tensor, descending: bool) -> Tensor:
    if torch.compiler.is_exporting():
        # ONNX has no stable sort, but its TopK puts the earlier one first among equals.
        return values.argsort(dim=-1, descending=descending)
    return values.argsort(dim=-1, descending=descending, stable=True)


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
