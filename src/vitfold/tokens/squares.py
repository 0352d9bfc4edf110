"""Squares of patches that leave a sequence as one, as what joins squares behind the blocks needs.

Behind the prefix, the patches of a square lie one after another, row by row of the square: `area`
tokens that share one fate. Knows no model.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vitfold.errors import ShapeError
from vitfold.tokens.dense import Dense
from vitfold.tokens.layout import MANY, Grid
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap


def check_whole(grid: Grid, side: int) -> None:
    """Refuse a grid that is not made of whole squares."""
    if any(length % side for length in grid):
        shape = "x".join(map(str, grid))
        raise ShapeError(
            f"{shape} patches are not made of squares of {side}x{side}, which leave as one: give "
            f"images whose sides are multiples of {side} patches"
        )


def in_squares(grid: Grid, side: int, device: torch.device | None = None) -> Tensor:
    """`[N]`: the patches of a grid, counted row by row, in the order of its squares."""
    check_whole(grid, side)
    height, width = grid
    cells = torch.arange(height * width, device=device)
    split = cells.view(height // side, side, width // side, side)
    return split.transpose(1, 2).flatten()


def squares_of(grid: Grid | None, side: int) -> Grid | None:
    """The grid that squares form."""
    if grid is None or grid == MANY:
        return grid
    check_whole(grid[-2:], side)
    return (*grid[:-2], grid[-2] // side, grid[-1] // side)


def mean(x: Tensor, area: int, prefix: int) -> Tensor:
    """`[B, n, ...]`: the mean of every square of `x[B, N, ...]`, behind the prefix."""
    pooled = x[:, prefix:].unflatten(1, (-1, area)).mean(dim=2)
    return torch.cat([x[:, :prefix], pooled], dim=1) if prefix else pooled


def first(x: Tensor, area: int, prefix: int) -> Tensor:
    """`[B, n]`: what all patches of a square have in common, behind the prefix."""
    return torch.cat([x[:, :prefix], x[:, prefix::area]], dim=1)


def state_of(state: TokenState, area: int) -> Dense:
    """The state of tokens that lie in rows, as one of their squares."""
    prefix = state.prefix
    size = None if state.size is None else first(state.size, area, prefix)
    valid = None if state.valid is None else first(state.valid, area, prefix)
    length = prefix + (state.length - prefix) // area
    frame = state.frame | {"tokens": length, "grid": None}
    return Dense(**frame, size=size, valid=valid)


def spread(change: TokenMap, area: int, prefix: int) -> TokenMap:
    """A map of squares as one of their patches, each of which goes where its like goes; the order
    of tokens stays."""
    change = change.in_order()
    weight = change.weight
    if weight is not None:
        weight = torch.cat(
            [weight[:, :prefix], weight[:, prefix:].repeat_interleave(area, dim=1)], dim=1
        )
    keep = torch.cat(
        [change.keep[:, :prefix], _patches(change.keep[:, prefix:], area, prefix)], dim=1
    )
    into = _patches(change.into, area, prefix)
    into = into.where(change.into.repeat_interleave(area, dim=1) >= 0, change.into.new_tensor(-1))
    return replace(
        change, keep=keep, gone=_patches(change.gone, area, prefix), into=into, weight=weight
    )


def _patches(squares: Tensor, area: int, prefix: int) -> Tensor:
    """`[B, n * area]`: the places of the patches of squares at `squares[B, n]`."""
    start = (squares - prefix) * area + prefix
    return (start.unsqueeze(-1) + torch.arange(area, device=squares.device)).flatten(1)
