"""Fit to FLOPs: find the member of a family that costs a share of the dense FLOPs.

Schedules, rates, heights and thresholds are all found so: a family is a function of one number, and
the larger that number, the more tokens leave and the less its member costs.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from vitfold.errors import MethodError
from vitfold.folding.flops import Schedule
from vitfold.tokens.layout import Layout

CLOSE = 0.002
"""How near to the share a fit stops."""

NEAR = 0.01
"""How far from the share a result may be and still be handed out."""

TRIES = 12
"""Members of a family that are tried, at most."""

T = TypeVar("T", bound=Hashable)

Point = tuple[float, float]
"""A number, and by how much the member of that number costs more than the share."""

Spread = Callable[[float, int, int], Schedule]
"""From how many tokens leave a block on average, the depth and the first block that reduces."""


class Fit(Generic[T]):
    """A share of the dense FLOPs, the candidates that were tried for it, and what each costs.

    costs: the share that each candidate costs; what is known without trying may be entered.
    """

    def __init__(self, share: float, cost: Callable[[T], float]) -> None:
        self.share, self._cost = share, cost
        self.costs: dict[T, float] = {}

    def excess(self, candidate: T) -> float:
        """By how much a candidate costs more than the share; computed once for each."""
        if candidate not in self.costs:
            self.costs[candidate] = self._cost(candidate)
        return self.costs[candidate] - self.share

    @property
    def best(self) -> T:
        """The candidate whose cost is nearest to the share."""
        return min(self.costs, key=lambda candidate: abs(self.excess(candidate)))

    @property
    def nearest(self) -> float:
        """The share that the best candidate costs."""
        return self.costs[self.best]

    @property
    def miss(self) -> float:
        """How far the best candidate is from the share."""
        return abs(self.nearest - self.share)

    def along(
        self,
        family: Callable[[float], T],
        start: float,
        most: float,
        *,
        tries: int = TRIES,
        close: float = CLOSE,
    ) -> float:
        """Try members of a family, from number 0, which costs the most, up to `most`; returns the
        largest number that was tried and costs more than the share.

        The share falls nearly along a line: from `start` along the line from 0 until there is a
        bracket, then by false position in it, and every fourth time by halves.
        """
        top = self.excess(family(0.0))
        if top <= 0:
            return 0.0
        low, high, number = (0.0, top), None, min(start, most)
        for attempt in range(tries):
            point = (number, self.excess(family(number)))
            low, high = (point, high) if point[1] > 0 else (low, point)
            if self.miss <= close or low[0] == most:
                break
            number = (
                _further(low, top, most)
                if high is None
                else _between(low, high, halve=attempt % 4 == 3)
            )
        return low[0]


def _further(low: Point, top: float, most: float) -> float:
    """Where a line from (0, top) through `low` meets the share; `most` where it does not fall."""
    saved = top - low[1]
    return min(low[0] * top / saved, most) if saved > 0 else most


def _between(low: Point, high: Point, halve: bool) -> float:
    """Where a line through both points meets the share, well within the two."""
    span = low[1] - high[1]
    weight = 0.5 if halve or span <= 0 else low[1] / span
    return low[0] + (high[0] - low[0]) * min(max(weight, 0.02), 0.98)


def fit_schedule(
    share: float, cost: Callable[[Schedule], int], layout: Layout, first: int, spread: Spread
) -> Schedule:
    """The schedule that removes tokens as `spread` has it, and costs `share` of what none costs.

    Where that is too coarse, because windows merge several tokens at once, later and later blocks
    remove more, to make up for what is left.
    """
    schedule: Schedule = (0,) * layout.depth
    dense = cost(schedule)
    fit = Fit[Schedule](share, lambda schedule: cost(schedule) / dense)
    fit.costs[schedule] = 1.0
    for start in sorted({first, first + 1, first + 2, layout.depth // 2, layout.depth - 2}):
        if first <= start < layout.depth and fit.miss > NEAR / 2:
            schedule = _add(fit, schedule, layout, start, spread)
    if fit.miss > NEAR:
        raise MethodError(
            f"flops={share} cannot be reached by removing patch tokens from block {first} on: the "
            f"nearest share that can is {fit.nearest:.3f}"
        )
    return fit.best


def _add(
    fit: Fit[Schedule], base: Schedule, layout: Layout, start: int, spread: Spread
) -> Schedule:
    """`base` with as much more removed from block `start` on as leaves it above the share."""

    def more(rate: float) -> Schedule:
        extra = spread(rate, layout.depth, start)
        return tuple(a + b for a, b in zip(base, extra, strict=True))

    # What would cost the share if every block cost what its tokens do.
    blocks = (layout.depth - start) ** 2
    guess = fit.excess(base) * 2 * layout.depth * layout.patches / blocks
    return more(fit.along(more, guess, layout.patches / 2))
