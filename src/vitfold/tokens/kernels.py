"""The operations that matching and folding are made of, and how to replace them.

`Kernels` names five: `order`, `nearest`, `take`, `add_rows` and `merge`. Matching and folding call
them through `active`, which picks an implementation by the device of a tensor, or the one for
programs that are exported. `EAGER` is for torch; `PORTABLE`, what is exported, gives the same
results from operations that any runtime has.

Results are the same everywhere, ties included. No answer depends on how a runtime breaks ties, and
tokens that are alike tie although each runtime, and each place in a batch, rounds differently: what
differs by no more than rounding makes it (`rounding`) is equal, and the earlier one comes first.

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
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.tokens.modes import compiling, recording

NOWHERE = float("-inf")
"""How similar a token is to one that it must not merge with."""

PIECE = 2**20
"""How many scores of one image are there at a time. A number for each image: how one is computed
must not depend on those beside it."""

ROUNDING = types.MappingProxyType({torch.float32: 2.0**-19, torch.float64: 2.0**-36})
"""By how much similarities differ that are equal but for rounding: some sixteen units in the last
place of one, in float32. In half precision there is nothing to spare between those."""

PRODUCT = 2**15
"""Up to so many pairs of a row and a place that it may be added at are they added by a product."""

PAIRS = 2**15
"""Up to so many pairs of values are they compared each with each, which takes fewer steps than a
sort."""

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
        """The tokens from `start` to `stop` of this side."""
        size = None if self.size is None else self.size[..., start:stop]
        here = None if self.here is None else self.here[..., start:stop]
        return Side(self.rows[..., start:stop, :], size, here)


@dataclass(frozen=True, eq=False)
class Nearest:
    """What the tokens of one side resemble most on the other.

    best: `[B, ..., n]` by how much; minus infinity where nothing can match.
    partner: which one. Of all tokens `[B, ..., n]`, or, which is cheaper, of some: from
        `picked[B, r]`, counted over all axes but the first, to `[B, r]`. The earliest of equals.
    """

    best: Tensor
    partner: Callable[[Tensor | None], Tensor]


class Moves(Protocol):
    """Which token goes where: a `TokenMap`."""

    @property
    def keep(self) -> Tensor:
        """`[B, slots]`: the token that stays in each slot."""

    @property
    def gone(self) -> Tensor:
        """`[B, r]`: the tokens that leave theirs."""

    @property
    def into(self) -> Tensor:
        """`[B, r]`: the slot that each of those goes into; -1, where `fate` is mixed: nowhere."""

    @property
    def fate(self) -> str:
        """Merged or mixed: where all are dropped, nothing merges."""


@dataclass(frozen=True)
class Kernels:
    """One implementation of what matching and folding compute.

    take: the rows of `x[B, N, C]` at `index[B, n]`, image by image.
    add_rows: `x[B, n, C]` plus `rows[B, r, C]` at `index[B, r]`, in place or not; repeated indices
        add up.
    order: indices along the last axis of `values` by falling (`descending`) or rising value; the
        earlier one first among equals. What lies no further apart than `margin` is equal, and so
        are its neighbours. With a `cut`, of `values[B, N]`, which come before that place is
        all that has to be right.
    merge: `[B, slots, C]` the weighted means of `x[B, N, C]` in the slots that they move to, and
        `[B, slots]` the sums of the `weight[B, N]` there.
    nearest: what each token of a side resembles most on the other.
    flops: what custom operators cost, for `torch.utils.flop_counter`: from the shapes of their
        arguments, two per multiply-add.
    """

    take: Callable[[Tensor, Tensor], Tensor]
    add_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    order: Callable[[Tensor, bool, float, int | None], Tensor]
    nearest: Callable[[Side, Side], Nearest]
    merge: Callable[[Tensor, Tensor, Moves], tuple[Tensor, Tensor]]
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


def rounding(values: Tensor) -> float:
    """By how much these differ where they are equal but for rounding."""
    return ROUNDING.get(values.dtype, 0.0)


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
    # For a few rows a plain loop beats `scatter_add`, which sorts the indices in parallel first.
    if x.shape[0] == 1 and x.element_size() > 2:
        return x.index_add_(1, index[0], rows)  # which rounds differently in half precision
    return _add_flat(x, index, rows)


def _add_flat(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    flat, channels = (index + first_rows(x)).flatten(), x.shape[-1]
    x.view(-1, channels).index_add_(0, flat, rows.reshape(-1, channels))
    return x


def _merge(x: Tensor, weight: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
    kernels = active(x)
    stay, move = weight.gather(1, moves.keep), weight.gather(1, moves.gone)
    into, landed = landing(moves, move)
    total = stay.scatter_add(1, into, landed)
    survivors, moved = kernels.take(x, moves.keep), kernels.take(x, moves.gone)
    if x.element_size() < 4:
        # A slot that nothing joins is multiplied by exactly one.
        survivors = survivors * _channelwise(stay / total, x)
    else:
        # The same mean without a pass over slots that nothing joins: a slot goes towards each
        # token that does. What is infinite stays. Too few bits would lose many small ways.
        moved = moved - kernels.take(survivors, into).nan_to_num(0.0, 0.0, 0.0)
    moved = moved * _channelwise(move / total.gather(1, into), x)
    if moves.fate == "mixed":
        moved = moved.where((moves.into >= 0).unsqueeze(-1), 0)
    return kernels.add_rows(survivors, into, moved), total


def landing(moves: Moves, move: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, r]`: slots for all tokens that leave theirs, and what each brings of `move[B, r]`: those
    that go nowhere, nothing."""
    if moves.fate != "mixed":
        return moves.into, move
    return moves.into.clamp(min=0), move.where(moves.into >= 0, 0)


def _channelwise(weight: Tensor, x: Tensor) -> Tensor:
    return weight.unsqueeze(-1).to(x.dtype)


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
    return _nearest_whole(a, b)


def _nearest_in_pieces(a: Side, b: Side, rows: int) -> Nearest:
    """As `_nearest_whole`, a few rows at a time: never are all scores in memory at once."""
    best, partners = [], []
    for start in range(0, a.rows.shape[-2], rows):
        scores = similarity(a.part(start, start + rows), b)
        best.append(scores.amax(dim=-1))
        partners.append(first_highest(scores, best[-1]))
    partner = torch.cat(partners, dim=-1)

    def of(picked: Tensor | None) -> Tensor:
        return partner if picked is None else partner.flatten(1).gather(1, picked)

    return Nearest(torch.cat(best, dim=-1), of)


def _partner(scores: Tensor, best: Tensor, picked: Tensor | None) -> Tensor:
    if picked is not None:
        rows = scores if scores.dim() == 3 else scores.flatten(1, -2)
        scores, best = active(scores).take(rows, picked), best.flatten(1).gather(1, picked)
    return first_highest(scores, best)


def _order(values: Tensor, descending: bool, margin: float, cut: int | None = None) -> Tensor:
    """Where nothing ties that matters, which can be told at once on a CPU, one sort is enough; also
    where only what is exactly equal ties, as torch keeps the order of that."""
    if margin == 0:
        return values.argsort(dim=-1, descending=descending, stable=True)
    ranked, first = values.sort(dim=-1, descending=descending)
    if values.shape[-1] < 2 or (_looks(values) and _apart(ranked, margin, cut)):
        return first
    return _untied(ranked, first, descending, margin)


def _order_anywhere(
    values: Tensor, descending: bool, margin: float, _cut: int | None = None
) -> Tensor:
    """Sorted, and sorted again by whole numbers that all differ: how the first sort breaks ties
    does not matter. Few are compared instead."""
    if values.shape[-1] ** 2 <= PAIRS:
        return _compared(values, descending, margin)
    ranked, first = values.sort(dim=-1, descending=descending)
    return first if values.shape[-1] < 2 else _untied(ranked, first, descending, margin)


def _apart(ranked: Tensor, margin: float, cut: int | None) -> bool:
    """Whether sorted values differ everywhere, or on both sides of a cut."""
    if cut is None:
        return ranked.diff().abs().amin().item() > margin
    if not 0 < cut < ranked.shape[-1]:
        return True
    sides = ranked[:, cut - 1 : cut + 1].tolist()  # one look for all images
    return all(abs(before - behind) > margin for before, behind in sides)


def _looks(values: Tensor) -> bool:
    """Whether values can be looked at now, without waiting for a device."""
    return type(values) is Tensor and values.is_cpu and not compiling()


def _untied(ranked: Tensor, first: Tensor, descending: bool, margin: float) -> Tensor:
    """The order in which equals come as they stand. What is not apart has one level; level and
    place make whole numbers. Up to 46,340 values they fit the 32 bits some runtimes compute in."""
    before, behind = ranked[..., :-1], ranked[..., 1:]
    # The difference of two infinities is no number, and not above anything: they are equal.
    apart = (before - behind if descending else behind - before) > margin
    base = F.pad(apart.long().cumsum(dim=-1), (1, 0)) * first.shape[-1]
    # Sorted, each has the level that its place had before.
    return (base + first).sort(dim=-1).values - base


def _compared(values: Tensor, descending: bool, margin: float) -> Tensor:
    """The same order by comparing each with each, in few steps that any runtime does well. Levels
    begin with values that have no other one just before them; level and place make whole numbers,
    in float32, which holds these."""
    count = values.shape[-1]
    rank = values if descending else -values
    own, other = rank.unsqueeze(-1), rank.unsqueeze(-2)
    way = (other - own).where(other > own, float("inf")).amin(dim=-1)
    begins = rank.where(way > margin, NOWHERE).unsqueeze(-2)
    level = torch.where(begins >= own, float(count), 0.0).sum(dim=-1, keepdim=True)
    places = torch.arange(count, device=values.device, dtype=torch.float32)
    # OpenVINO adds wrong places to a sum that has no axis left where it summed.
    return (level.squeeze(-1) + places).argsort(dim=-1)


def first_highest(scores: Tensor, best: Tensor) -> Tensor:
    """`[...]`: the first place in every row of `scores[..., m]` that is as high as the `best[...]`
    of that row, but for rounding."""
    margin, best = rounding(scores), best.unsqueeze(-1)
    if not compiling():
        return (scores - best).clamp_(max=-margin).argmax(dim=-1)  # torch takes the first of equals
    # A graph may go to a runtime that takes any. Not all find the least of whole numbers.
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)
    return places.where(scores >= best - margin, scores.shape[-1] - 1).amin(dim=-1).long()


def _add_anywhere(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A product, while it is small: few runtimes add rows at indices well. Not all multiply whole
    numbers."""
    tokens, count = x.shape[1], rows.shape[1]
    if tokens * count > PRODUCT or not rows.is_floating_point():
        wide = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return x.scatter_add(1, wide, rows)
    places = torch.arange(tokens, device=x.device).unsqueeze(1)
    joins = (index.unsqueeze(1) == places).to(rows.dtype)
    return x + torch.bmm(joins, rows)


def _merge_anywhere(x: Tensor, weight: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
    """One product, while it is small, in which the rows that move have their weights. A slot that
    nothing joins is multiplied by exactly one."""
    take = active(x).take
    survivors, moved = take(x, moves.keep), take(x, moves.gone)
    stay, move = weight.gather(1, moves.keep), weight.gather(1, moves.gone)
    if stay.shape[1] * move.shape[1] > PRODUCT:
        into, landed = landing(moves, move)
        total = stay.scatter_add(1, into, landed)
        moved = moved * _channelwise(landed / total.gather(1, into), x)
        return _add_anywhere(survivors * _channelwise(stay / total, x), into, moved), total
    places = torch.arange(stay.shape[1], device=x.device).unsqueeze(1)
    joins = move.unsqueeze(1).where(moves.into.unsqueeze(1) == places, 0)
    total = stay + joins.sum(dim=-1)
    shares = joins / total.unsqueeze(-1)
    return survivors * _channelwise(stay / total, x) + torch.bmm(shares.to(x.dtype), moved), total


def _nearest_whole(a: Side, b: Side) -> Nearest:
    scores = similarity(a, b)
    best = scores.amax(dim=-1)
    return Nearest(best, functools.partial(_partner, scores, best))


EAGER = Kernels(_take, _add_rows, _order, _nearest, _merge)

PORTABLE = Kernels(_look_up, _add_anywhere, _order_anywhere, _nearest_whole, _merge_anywhere)

_REGISTERED: dict[str, Kernels] = {EXPORT: PORTABLE}
