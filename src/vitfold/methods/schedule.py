"""Schedules: how many tokens every block is to remove."""

import itertools
import math
from collections.abc import Iterable

from vitfold.errors import MethodError

Reduction = int | list[int] | tuple[int, float]
"""The same number for every block, a number for each, or `(r, inflection)`: a ramp."""


def per_block(r: Reduction, depth: int, first: int) -> tuple[int, ...]:
    """The number for every block; nothing before block `first`."""
    return tuple(0 if block < first else value for block, value in enumerate(_spread(r, depth)))


def _spread(r: Reduction, depth: int) -> list[int]:
    if isinstance(r, int):
        return [r] * depth
    if isinstance(r, tuple):
        return _ramp(r[0], r[1], depth)
    if len(r) > depth:
        raise MethodError(f"r has {len(r)} numbers, the model {depth} blocks: give at most {depth}")
    return r + [0] * (depth - len(r))


def _ramp(r: int, inflection: float, depth: int) -> list[int]:
    """Linear from `int(r * (1 - inflection))` to `2 r - that`, truncated."""
    start = int(r * (1 - inflection))
    rise, run = 2 * (r - start), max(depth - 1, 1)
    # In whole numbers: a rounded slope would miss the end by one.
    return [(start * run + rise * block) // run for block in range(depth)]


def along(rate: float, inflection: float, depth: int, first: int) -> tuple[int, ...]:
    """`rate` tokens a block on average, in whole tokens, from block `first` on: along a ramp from
    `rate * (1 - inflection)` to `rate * (1 + inflection)`."""
    run = max(depth - first - 1, 1)
    blocks = [max(block - first, 0) for block in range(depth + 1)]
    before = [
        math.floor(rate * n * (1 - inflection) + rate * inflection * n * (n - 1) / run)
        for n in blocks
    ]
    return tuple(after - now for now, after in itertools.pairwise(before))


def whole(means: Iterable[float]) -> list[int]:
    """Whole numbers whose sums up to every block are the nearest to those of the means."""
    numbers: list[int] = []
    total = 0.0
    for mean in means:
        total += mean
        numbers.append(round(total) - sum(numbers))
    return numbers
