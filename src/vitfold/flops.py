"""Counting floating point operations, and finding the schedule that costs a share of them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from vitfold.errors import MethodError
from vitfold.families import Found
from vitfold.layout import Layout
from vitfold.modes import evaluating

CLOSE = 0.002
"""How near to the share that is asked for the search stops."""

NEAR = 0.01
"""How far from it a schedule may be and still be given."""

TRIES = 12

FEW = 2**36
"""So many operations are done sooner than they are worked out from shapes."""

Schedule = tuple[int, ...]

Spread = Callable[[float, int, int], Schedule]
"""From how many tokens leave a block on average, the depth and the first block that reduces."""


def count(call: Callable[[], Any]) -> int:
    """The floating point operations (two per multiply-add) of a call."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops())


class _NoModules(ModuleTracker):
    """Does not tell the counter which module runs: no one asks, and it would fail on views of
    weights, which say without gradients too that they need one."""

    def __enter__(self) -> "_NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def dry_count(call: Callable[[], Any]) -> int:
    """The same from shapes alone: nothing is computed, unless the model looks at its inputs."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return count(call)
    except DataDependentOutputException:
        return count(call)


def cost(found: Found, **inputs: Tensor) -> int:
    """The floating point operations of a call of a trunk in evaluation, on these inputs or on such
    as it is made for: done where they are few, from shapes alone where they are many."""
    trunk, given = found.trunk, inputs or found.example()
    weights = list(trunk.parameters())
    about = 2 * sum(weight.numel() for weight in weights) * found.layout().tokens
    quick = about < FEW and weights[0].dtype == torch.float32 and not weights[0].is_meta
    with evaluating(trunk):
        return (count if quick else dry_count)(lambda: trunk(**given))


def solve(
    share: float, cost: Callable[[Schedule], int], layout: Layout, first: int, spread: Spread
) -> Schedule:
    """The schedule that removes tokens as `spread` has it, and costs `share` of what none costs.

    Where that is too coarse, because windows merge several tokens at once, later and later blocks
    remove more, to make up for what is left.
    """
    search = _Search(share, cost, layout, spread)
    schedule = search.dense
    for start in sorted({first, first + 1, first + 2, layout.depth // 2, layout.depth - 2}):
        if first <= start < layout.depth and search.distance > NEAR / 2:
            schedule = search.add(schedule, start)
    best, reached = search.best
    if search.distance > NEAR:
        raise MethodError(
            f"flops={share} cannot be reached by removing patch tokens from block {first} on: the "
            f"nearest share that can is {reached:.3f}"
        )
    return best


class _Search:
    """Schedules that were tried, and the shares that they reach."""

    def __init__(
        self, share: float, cost: Callable[[Schedule], int], layout: Layout, spread: Spread
    ) -> None:
        self.share = share
        self.spread = spread
        self.cost = cost
        self.layout = layout
        self.dense: Schedule = (0,) * layout.depth
        self.reached: dict[Schedule, float] = {self.dense: 1.0}
        self.whole = cost(self.dense)

    @property
    def best(self) -> tuple[Schedule, float]:
        """The schedule that comes nearest, and what it reaches."""
        return min(self.reached.items(), key=lambda item: abs(item[1] - self.share))

    @property
    def distance(self) -> float:
        """How far that is from the share."""
        return abs(self.best[1] - self.share)

    def try_out(self, schedule: Schedule) -> float:
        """The share that a schedule reaches."""
        if schedule not in self.reached:
            self.reached[schedule] = self.cost(schedule) / self.whole
        return self.reached[schedule]

    def add(self, base: Schedule, start: int) -> Schedule:
        """`base` with as much more removed from block `start` on as leaves it above the share.

        The share falls as the rate grows, nearly along a line: from a first guess along the line
        from `base` until there is a bracket, then by false position in it.
        """

        def more(rate: float) -> Schedule:
            extra = self.spread(rate, self.layout.depth, start)
            return tuple(a + b for a, b in zip(base, extra, strict=True))

        depth, patches, whole = self.layout.depth, self.layout.patches, self.try_out(base)
        most = patches / 2
        # What reaches the share if every block costs what its tokens do.
        rate = min((whole - self.share) * 2 * depth * patches / (depth - start) ** 2, most)
        low, high = (0.0, whole), (math.inf, 0.0)
        for attempt in range(TRIES):
            point = (rate, self.try_out(more(rate)))
            low, high = (point, high) if point[1] > self.share else (low, point)
            if self.distance <= CLOSE or low[0] == most:
                break
            if high[0] < math.inf:
                rate = _between(low, high, self.share, halve=attempt % 4 == 3)
            else:
                saved = whole - low[1]
                rate = min(rate * (whole - self.share) / saved, most) if saved > 0 else most
        return more(low[0])


def _between(
    low: tuple[float, float], high: tuple[float, float], share: float, halve: bool
) -> float:
    span = low[1] - high[1]
    weight = 0.5 if halve or span <= 0 else (low[1] - share) / span
    return low[0] + (high[0] - low[0]) * min(max(weight, 0.02), 0.98)
