"""Rows of different lengths that lie one after another, and the same rows padded."""

import torch
from torch import Tensor


def starts(lengths: Tensor) -> Tensor:
    """`[B]`: where each row begins."""
    return lengths.cumsum(0) - lengths


def owners(lengths: Tensor, total: int) -> Tensor:
    """`[T]`: the row that each of all `T` elements belongs to."""
    rows = torch.arange(len(lengths), device=lengths.device)
    return rows.repeat_interleave(lengths, output_size=total)


def left(lengths: Tensor, keep: Tensor) -> Tensor:
    """`[B]`: how many elements each row has left when those with `keep[T]` stay."""
    total = int(lengths.sum())
    return torch.bincount(owners(lengths, total)[keep], minlength=len(lengths))


def table(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, longest]`: the elements of each row, and which of those places hold one."""
    longest = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(longest, device=lengths.device)
    here = place < lengths.unsqueeze(1)
    return (starts(lengths).unsqueeze(1) + place).where(here, 0), here


def pad(x: Tensor, here: Tensor, fill: int = 0) -> Tensor:
    """`[B, longest, ...]` with zeros, or what else is to fill it, from `x[1, T, ...]`."""
    blank = x.new_full((*here.shape, *x.shape[2:]), fill)
    return blank.index_put(here.nonzero(as_tuple=True), x[0])
