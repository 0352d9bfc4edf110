"""Attention whose bias is made of queries and of how far keys lie from them along the rows and the
columns of a map, as SAM and ViTDet have it, over tokens some of which have merged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.tokens.modes import recording

MANY = 1024
"""From so many tokens on, products with what is one at the place of a key, and zero elsewhere, are
faster than looking up what is there."""


@dataclass(frozen=True, eq=False)
class Relative:
    """Where current tokens are, and what else is added to their logits.

    tables: along rows, then along columns, a row of parameters for every distance, `[2 L - 1, d]`
        unless it is to be resized; None where positions do not count.
    grid: height and width of the map, or of what there is of a window.
    window: height and width of that; what of it is not there is padding.
    places: `[S, n]` the place of every token on the grid, row by row; None: all, in order.
    sizes: `[S, 1, 1, n]` log sizes, where they count.
    """

    tables: tuple[Tensor, Tensor] | None
    grid: tuple[int, int]
    window: tuple[int, int]
    places: Tensor | None
    sizes: Tensor | None

    @property
    def padded(self) -> bool:
        """Whether what there is of a window is not all of it."""
        return self.grid != self.window

    def bias(self, q: Tensor) -> Tensor | None:
        """`[S, H, n, n]`: what is added to the logits of queries `q[S, H, n, d]`, with one more
        column for padding."""
        height, width = self.grid
        rows, columns = self._along(q)
        bias = None
        if self.tables is not None:
            bias = self._between(rows[..., :height], columns[..., :width])
        if self.sizes is not None:
            bias = self.sizes if bias is None else bias + self.sizes
        if not self.padded:
            return bias
        keys = q.new_zeros(*q.shape[:3], q.shape[2]) if bias is None else bias
        beside = _padding(rows, columns, height, width)
        both = (keys.expand(*q.shape[:3], -1), beside.expand(*q.shape[:3], -1))
        return torch.cat(both, dim=-1)

    def _along(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """`[S, H, n, L]` along both axes: what every row and every column of the window adds to
        the logits of a query."""
        if self.tables is None:
            zeros = [q.new_zeros(1, 1, 1, length) for length in self.window]
            return zeros[0], zeros[1]
        sides = zip(self.tables, self.window, strict=True)
        rows, columns = (distances(table, length).to(q.dtype) for table, length in sides)
        if self.places is not None:
            width = self.grid[1]
            own = rows[self.places // width], columns[self.places % width]
            return _product(q, own[0]), _product(q, own[1])
        height, width = self.grid
        on_map = q.unflatten(2, self.grid)
        by_row = torch.einsum("bnhwc,hkc->bnhwk", on_map, rows[:height])
        by_column = torch.einsum("bnhwc,wkc->bnhwk", on_map, columns[:width])
        return by_row.flatten(2, 3), by_column.flatten(2, 3)

    def _between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """`[S, H, n, n]`: what is added for every pair of tokens."""
        if self.places is None:
            return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
        width = self.grid[1]
        own = self.places // width, self.places % width
        if self.places.shape[1] > MANY or recording():  # runtimes are slow to look much up too
            sides = zip(own, self.grid, strict=True)
            keys = torch.cat([F.one_hot(place, n).to(rows.dtype) for place, n in sides], dim=2)
            return torch.cat([rows, columns], dim=-1) @ keys.transpose(1, 2).unsqueeze(1)
        return _looked_up(rows, own[0]) + _looked_up(columns, own[1])


def _product(q: Tensor, rows: Tensor) -> Tensor:
    """`[S, H, n, L]`: products of queries with the rows `[S, n, L, d]` of their own."""
    return (q.transpose(1, 2) @ rows.transpose(2, 3)).transpose(1, 2)


def _looked_up(along: Tensor, places: Tensor) -> Tensor:
    """`[S, H, n, n]`: of `along[S, H, n, L]` what is at the place of every key."""
    index = places[:, None, None].expand(*along.shape[:3], -1)
    return along.gather(-1, index)


def distances(table: Tensor, length: int) -> Tensor:
    """`[length, length, d]`: of every place to every other the row for their distance, from a table
    that may be one for maps of another size."""
    count = 2 * length - 1
    if len(table) != count:
        table = F.interpolate(table.t().unsqueeze(0), size=count, mode="linear")[0].t()
    places = torch.arange(length, device=table.device)
    return table[places[:, None] - places + length - 1]


def _padding(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """`[S, H, n, 1]`: the logarithm of what all padding of a window adds up to: what lies below its
    last row, and right of its last column beside the rows above."""
    below = _total(rows[..., height:]) + _total(columns)
    beside = _total(rows[..., :height]) + _total(columns[..., width:])
    if rows.shape[-1] == height:
        return beside
    return below if columns.shape[-1] == width else torch.logaddexp(below, beside)


def _total(along: Tensor) -> Tensor:
    return along.logsumexp(dim=-1, keepdim=True)


def attending(relative: Relative, padding: Tensor | None) -> Callable[[Any, Tensor], Tensor]:
    """A forward for attention with one projection `qkv`: what it computes of tokens `[S, n, C]`
    that lie so.

    padding: `[3 C]` queries, keys and values of padding; None: zeros.
    """

    def forward(attention: Any, x: Tensor) -> Tensor:
        q, k, v = _normed(attention, _apart(attention, attention.qkv(x)))
        bias = relative.bias(q)
        if relative.padded:
            k, v = _with_padding(attention, k, v, padding)
        rate = _dropout(attention) if attention.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        out = attention.proj(_side_by_side(out))
        return attention.proj_drop(out) if hasattr(attention, "proj_drop") else out

    return forward


def _side_by_side(out: Tensor) -> Tensor:
    """`[S, n, C]`: heads of `[S, H, n, d]` beside each other. A graph does not know how the
    attention of another runtime lays them out, so that no view of it will do."""
    return torch.cat(out.unbind(1), dim=-1) if recording() else out.transpose(1, 2).flatten(2)


def heads_of(attention: Any) -> int:
    """How many heads attention with one projection has."""
    names = ("num_heads", "num_attention_heads")
    return int(next(getattr(attention, name) for name in names if hasattr(attention, name)))


def _apart(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[S, H, n, d]`."""
    q, k, v = qkv.unflatten(-1, (3, heads_of(attention), -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _normed(attention: Any, parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys through their norms, where attention has them."""
    q, k, v = parts
    return (attention.q_norm(q), attention.k_norm(k), v) if hasattr(attention, "k_norm") else parts


def _with_padding(
    attention: Any, k: Tensor, v: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values with those of padding behind them."""
    if padding is None:
        return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    _, key, value = _normed(attention, _apart(attention, padding.to(k.dtype)[None, None]))
    own = (*k.shape[:2], 1, k.shape[3])
    return torch.cat([k, key.expand(own)], dim=2), torch.cat([v, value.expand(own)], dim=2)


def _dropout(attention: Any) -> float:
    """The rate at which weights of attention are left out in training."""
    rate = getattr(attention, "attn_drop", getattr(attention, "dropout", 0.0))
    return float(getattr(rate, "p", rate))
