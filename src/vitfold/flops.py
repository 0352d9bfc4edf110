"""Counting floating point operations, and finding the schedule that costs a share of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vitfold.errors import MethodError
from vitfold.layout import Layout
from vitfold.methods.schedule import evenly

CLOSE = 0.002
"""How near to the share that is asked for the search stops."""

Schedule = tuple[int, ...]


def count(call: Callable[[], Any]) -> int:
    """The floating point operations (two per multiply-add) of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def dry_count(call: Callable[[], Any]) -> int:
    """The same from shapes alone: nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count(call)


def solve(share: float, cost: Callable[[Schedule], int], layout: Layout, first: int) -> Schedule:
    """The schedule that removes tokens evenly and costs `share` of what none costs.

    The cost falls as the rate grows, nearly along a line: false position, kept inside a bracket.
    """
    dense = cost(evenly(0, layout.depth, first))

    def reached(rate: float) -> float:
        return cost(evenly(rate, layout.depth, first)) / dense

    low, high = (0.0, 1.0), (layout.patches / 2, reached(layout.patches / 2))
    if share < high[1] - CLOSE:
        raise MethodError(
            f"flops={share} cannot be reached: the least is {high[1]:.3f} of the dense FLOPs, with "
            f"half of all patch tokens leaving in every block from block {first} on"
        )
    best = min(low, high, key=lambda point: abs(point[1] - share))
    for attempt in range(12):
        if abs(best[1] - share) <= CLOSE:
            break
        rate = _between(low, high, share, halve=attempt % 3 == 2)
        point = (rate, reached(rate))
        low, high = (point, high) if point[1] > share else (low, point)
        best = min(best, point, key=lambda p: abs(p[1] - share))
    return evenly(best[0], layout.depth, first)


def _between(
    low: tuple[float, float], high: tuple[float, float], share: float, halve: bool
) -> float:
    span = low[1] - high[1]
    weight = 0.5 if halve or span <= 0 else (low[1] - share) / span
    return low[0] + (high[0] - low[0]) * min(max(weight, 0.02), 0.98)
