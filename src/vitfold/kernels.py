"""The operations that matching and folding are made of, and where others of the same may stand.

`Kernels` names four: `order`, `nearest`, `take` and `add_rows`. Matching and folding call them
through `active`, which picks an implementation by the device of a tensor, or the one for programs
that are exported. `EAGER` is plain torch. `PORTABLE` gives the same results, ties included, from
operations whose answers do not depend on how a runtime breaks ties: it is what is exported.

To put another implementation in their place, replace some of the functions and register that:

    mine = dataclasses.replace(kernels.EAGER, take=my_take, flops={torch.ops.mine.take: my_count})
    kernels.register(mine, "cuda")

Every function has to give what the one in `EAGER` gives. `flops` says what custom operators cost:
FLOPs are counted by operator, and those that torch does not know would count as nothing.
"""

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.modes import compiling, recording

NOWHERE = float("-inf")
"""How similar a token is to one that it must not merge with."""

PIECE = 2**20
"""How many scores of one image are there at a time. A number for each image: how one is computed
must not depend on those beside it."""

EXPORT = "export"
"""In place of a device: programs that are exported or traced, for whatever runs them."""


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a match; leading axes, such as windows, are matched one by one.

    rows: `[B, ..., n, d]` what tokens are compared by, of length one.
    size: `[B, ..., n]` where large groups have to resemble each other more.
    here: `[B, ..., n]` False for what cannot match; None: all can.
    """

    rows: Tensor
    size: Tensor | None = None
    here: Tensor | None = None

    def part(self, start: int, stop: int) -> "Side":
        """Some of its tokens."""
        size = None if self.size is None else self.size[..., start:stop]
        here = None if self.here is None else self.here[..., start:stop]
        return Side(self.rows[..., start:stop, :], size, here)


@dataclass(frozen=True, eq=False)
class Nearest:
    """What the tokens of one side resemble most on the other.

    best: `[B, ..., n]` by how much; minus infinity where nothing can match.
    partner: which one. Of all tokens `[B, ..., n]`, or, which is cheaper, of some: from
        `chosen[B, r]`, counted over all axes but the first, to `[B, r]`. The earliest of equals.
    """

    best: Tensor
    partner: Callable[[Tensor | None], Tensor]


@dataclass(frozen=True)
class Kernels:
    """One implementation of what matching and folding compute.

    take: the rows of `x[B, N, C]` at `index[B, n]`, image by image.
    add_rows: `x[B, n, C]` plus `rows[B, r, C]` at `index[B, r]`, in place or not; repeated indices
        add up.
    order: indices along the last axis of `values` by falling (`descending`) or rising value; the
        earlier one first among equals.
    nearest: what each token of a side resembles most on the other.
    flops: what custom operators cost, for `torch.utils.flop_counter`: from the shapes of their
        arguments, two per multiply-add.
    """

    take: Callable[[Tensor, Tensor], Tensor]
    add_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    order: Callable[[Tensor, bool], Tensor]
    nearest: Callable[[Side, Side], Nearest]
    flops: Mapping[Any, Callable[..., int]] = field(
        default_factory=lambda: types.MappingProxyType({})
    )


def active(like: Tensor) -> Kernels:
    """The implementation for a tensor's device, or for the program that is being exported."""
    return _REGISTERED.get(EXPORT if recording() else like.device.type, EAGER)


def register(kernels: Kernels | None, where: str) -> Kernels | None:
    """Use these on a type of device (`"cpu"`, `"cuda"`, ...), or in exported programs (`EXPORT`);
    None: the usual ones. Returns those that were registered there before."""
    before = _REGISTERED.pop(where, None)
    kernels = PORTABLE if kernels is None and where == EXPORT else kernels
    if kernels is not None:
        _REGISTERED[where] = kernels
    return before


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """What the operators of all that is registered cost."""
    return {op: cost for kernels in _REGISTERED.values() for op, cost in kernels.flops.items()}


# Plain torch.


def first_rows(x: Tensor) -> Tensor:
    """`[B, 1]`: where each image starts once batch and tokens are one axis."""
    batch, tokens = x.shape[:2]
    return torch.arange(0, batch * tokens, tokens, device=x.device).unsqueeze(1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    # One image at a time: what it costs is the number of calls.
    return x.index_select(1, index[0]) if x.shape[0] == 1 else _look_up(x, index)


def _look_up(x: Tensor, index: Tensor) -> Tensor:
    # An embedding lookup copies whole rows, where `gather` copies element by element.
    return F.embedding(index + first_rows(x), x.reshape(-1, x.shape[-1]))


def _add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    # One operation for any batch: others round differently in half precision. For a few rows a
    # plain loop beats `scatter_add`, which sorts the indices in parallel first.
    if x.shape[0] == 1:
        x[0].index_add_(0, index[0], rows[0])
        return x
    return _add_flat(x, index, rows)


def _add_flat(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    flat, channels = (index + first_rows(x)).flatten(), x.shape[-1]
    x.view(-1, channels).index_add_(0, flat, rows.reshape(-1, channels))
    return x


def _stable_order(values: Tensor, descending: bool) -> Tensor:
    return values.argsort(dim=-1, descending=descending, stable=True)


def similarity(a: Side, b: Side) -> Tensor:
    """`[B, ..., n, m]`: how much all tokens of both sides resemble each other: their cosine; with
    sizes, minus Ward's distance."""
    multiply = torch.bmm if a.rows.dim() == 3 else torch.matmul
    scores = multiply(a.rows, b.rows.transpose(-1, -2))
    if a.size is not None and b.size is not None:
        scores = harder_for_large(scores, a.size, b.size)
    if a.here is not None and b.here is not None:
        allowed = a.here.unsqueeze(-1) & b.here.unsqueeze(-2)
        scores = scores.masked_fill(~allowed, NOWHERE)
    return scores


def harder_for_large(cosine: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Minus the distance `1 - cosine[..., n, m]` between groups of `a[..., n]` and `b[..., m]`
    tokens, times the root of `a b / (a + b)`."""
    share = (a.reciprocal().unsqueeze(-1) + b.reciprocal().unsqueeze(-2)).rsqrt()
    return (cosine - 1) * share.to(cosine.dtype)


def _nearest(a: Side, b: Side) -> Nearest:
    others = b.rows.shape[1:-1].numel()
    # A graph is for any number of tokens, and in one piece.
    if not compiling() and a.rows.shape[-2] * others > PIECE:
        return _nearest_in_pieces(a, b, max(PIECE // others, 1))
    scores = similarity(a, b)
    return Nearest(scores.amax(dim=-1), functools.partial(_first_highest, scores))


def _nearest_in_pieces(a: Side, b: Side, rows: int) -> Nearest:
    """The same of a few rows at a time: the scores of all are never there at once."""
    starts = range(0, a.rows.shape[-2], rows)
    pieces = [similarity(a.part(start, start + rows), b).max(dim=-1) for start in starts]
    partner = torch.cat([piece.indices for piece in pieces], dim=-1)

    def of(chosen: Tensor | None) -> Tensor:
        return partner if chosen is None else partner.flatten(1).gather(1, chosen)

    return Nearest(torch.cat([piece.values for piece in pieces], dim=-1), of)


def _first_highest(scores: Tensor, chosen: Tensor | None) -> Tensor:
    """Where the chosen rows of `scores[B, ..., n, m]` are highest."""
    return _chosen(scores, chosen).argmax(dim=-1)


def _chosen(scores: Tensor, chosen: Tensor | None) -> Tensor:
    return scores if chosen is None else active(scores).take(scores.flatten(1, -2), chosen)


# The same for any runtime: ties are broken by numbers that are all different, or by no sort at all.


def _portable_order(values: Tensor, descending: bool) -> Tensor:
    """Sorted twice. How the first sort breaks ties does not matter: equals get one level. Level and
    place make whole numbers that all differ, and so have one order."""
    ranked, order = values.sort(dim=-1, descending=descending)
    above = (ranked[..., 1:] != ranked[..., :-1]).long().cumsum(dim=-1)
    level = torch.zeros_like(order).scatter(-1, order, F.pad(above, (1, 0)))
    places = torch.arange(values.shape[-1], device=values.device)
    return (level * values.shape[-1] + places).argsort(dim=-1)


def _portable_nearest(a: Side, b: Side) -> Nearest:
    scores = similarity(a, b)
    return Nearest(scores.amax(dim=-1), functools.partial(_least_highest, scores))


def _least_highest(scores: Tensor, chosen: Tensor | None) -> Tensor:
    """The least index at which a row is as high as it gets."""
    rows = _chosen(scores, chosen)
    last = rows.shape[-1] - 1
    places = torch.arange(rows.shape[-1], device=rows.device)
    return places.where(rows == rows.amax(dim=-1, keepdim=True), last).amin(dim=-1)


EAGER = Kernels(_take, _add_rows, _stable_order, _nearest)

PORTABLE = Kernels(_look_up, _add_flat, _portable_order, _portable_nearest)

_REGISTERED: dict[str, Kernels] = {EXPORT: PORTABLE}
