"""The search for a fold: shapes that differ in one thing, from the best so far."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

from vitfold.folding.families import find
from vitfold.folding.fit import Fit
from vitfold.folding.flops import Schedule
from vitfold.lab.tuning.costs import NOISE, Costs
from vitfold.lab.tuning.goal import Goal
from vitfold.lab.tuning.measures import Measures
from vitfold.lab.tuning.shape import Shape, outset
from vitfold.lab.tuning.trials import Share, Trial

CLOSE = 0.002
"""How much more than it is to cost a fold may be expected to."""

AGAIN = 3
"""How often a shape is solved anew, once its timing has taught something."""

FINALISTS = 3

Tell = Callable[[float, str], None]
"""Gets how much of the budget is spent, from 0 to 1, and what is best so far."""


def silent(_spent: float, _best: str) -> None:
    """Tells nothing."""


@dataclass(frozen=True)
class Budget:
    """How long a search goes on, from now.

    trials: how many folds it looks at; None: as many as there is time for.
    """

    seconds: float
    trials: int | None
    start: float = field(default_factory=time.monotonic)

    def spent(self, trials: int) -> float:
        """How much of it is gone, from 0 to 1."""
        by_time = (time.monotonic() - self.start) / self.seconds
        return min(1.0, max(by_time, trials / self.trials if self.trials else 0.0))

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.start)


@dataclass(frozen=True)
class Candidate:
    """A fold that was looked at, and the shape that it has."""

    shape: Shape
    numbers: Schedule
    trial: Trial

    @property
    def share(self) -> Share:
        """Of the dense model's time, as it was timed."""
        assert self.trial.share is not None  # candidates are kept once they are timed
        return self.trial.share

    def __str__(self) -> str:
        """It in few words."""
        cue = f" by {self.shape.cue}" if self.shape.cue else ""
        return f"{1 / self.share.median:.2f}x, {self.trial.nearness} ({self.shape.method}{cue})"


class Search(ABC):
    """Looks at folds of one model until none that is near the best is better, or the budget is
    spent; the same figures give the same search.

    timed: candidates that were timed, keepers and others.
    seen: all folds that it looked at, in words.
    margin: the share of the goal that is aimed at, as timings differ.
    noise: how far off what is learned of costs may be.
    """

    margin: ClassVar[float] = 0.97
    noise: ClassVar[float] = NOISE

    def __init__(
        self,
        measures: Measures,
        goal: Goal,
        kinds: Sequence[tuple[str, str]],
        budget: Budget,
        tell: Tell,
    ) -> None:
        self.measures, self.goal, self.kinds = measures, goal, kinds
        self.budget, self.tell = budget, tell
        trunk = find(measures.dense)
        self.layout = trunk.layout()
        self.costs = Costs(self.layout, trunk.width, self.noise)
        self.timed: list[Candidate] = []
        self.seen: set[str] = set()

    @abstractmethod
    def keeps(self, candidate: Candidate) -> bool:
        """Whether a fold keeps the goal."""

    @abstractmethod
    def rank(self, candidate: Candidate) -> float:
        """What is least in the best of those that keep it."""

    @abstractmethod
    def consider(self, shape: Shape) -> None:
        """Look at the fold of that shape that is just enough, and time it where it may be best."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look for."""
        return False

    @property
    def best(self) -> Candidate | None:
        """The best that keeps the goal."""
        return next(iter(self.finalists()), None)

    def finalists(self) -> list[Candidate]:
        """The best that keep the goal, the best first."""
        keepers = [candidate for candidate in self.timed if self.keeps(candidate)]
        return sorted(keepers, key=self.rank)[:FINALISTS]

    def run(self) -> None:
        """Look at shapes while there are any, and time for one more like the last."""
        for shape in self._shapes():
            left = self.budget.left
            self.consider(shape)
            spent, best = self.budget.spent(len(self.seen)), self.best
            self.tell(spent, "" if best is None else f"best so far: {best}")
            took = left - self.budget.left
            if spent >= 1 or (best is not None and took > self.budget.left):
                return

    def _shapes(self) -> Iterator[Shape]:
        """Every kind, then what is near the best, whatever that is by then."""
        seen: set[Shape] = set()
        depth = self.layout.depth
        for shape in chain.from_iterable(outset(kind, depth) for kind in self.kinds):
            seen.add(shape)
            yield shape
        while self.best is not None:
            near = (s for s in self.best.shape.neighbours(depth) if s not in seen)
            if (other := next(near, None)) is None:
                return
            seen.add(other)
            yield other
        yield from self.last_resorts()

    def last_resorts(self) -> Iterator[Shape]:
        """What is left to look at where nothing keeps the goal."""
        yield from ()

    def solve(self, shape: Shape, level: float) -> Schedule | None:
        """The numbers with which a shape is expected to cost that share, or little less; None
        where it cannot be brought to it."""
        fit = Fit[Schedule](level, lambda numbers: self.expected(shape, numbers))
        most = self.layout.patches / 2
        fit.along(lambda rate: shape.numbers(rate, self.layout), most / 8, most, tries=30)
        enough = [n for n in fit.costs if fit.excess(n) <= CLOSE and any(n)]
        return max(enough, key=fit.excess, default=None)

    def expected(self, shape: Shape, numbers: Schedule) -> float:
        """What a fold is expected to cost, as a share of the dense model."""
        return self.costs.share(shape, numbers)

    def look(self, shape: Shape, numbers: Schedule) -> Trial:
        """How near a fold stays."""
        method = shape.fold(numbers)
        self.seen.add(str(method))
        return self.measures.trial(method)

    def time(self, shape: Shape, numbers: Schedule, trial: Trial) -> Candidate:
        """How fast it is; what is learned goes into what is expected of others."""
        candidate = Candidate(shape, numbers, trial)
        self.measures.time(trial)
        self.learn(candidate)
        self.timed.append(candidate)
        return candidate

    def learn(self, candidate: Candidate) -> None:
        """Expect of others what was measured of this one."""
        self.costs.add(candidate.shape, candidate.numbers, candidate.share.median)

    def settle(self, rounds: int) -> Candidate | None:
        """The best that keeps the goal when it is timed for longer, too; where none does, its shape
        is solved anew, by what that has taught."""
        for _ in range(AGAIN):
            finalists = self.finalists()
            if not finalists:
                return None
            self._race(finalists, rounds)
            if keepers := [candidate for candidate in finalists if self.keeps(candidate)]:
                return min(keepers, key=self.rank)
            self.consider(finalists[0].shape)
        return None

    def _race(self, finalists: Sequence[Candidate], rounds: int) -> None:
        methods = {str(n): candidate.trial.method for n, candidate in enumerate(finalists)}
        shares = self.measures.race(methods, rounds)
        for number, candidate in enumerate(finalists):
            candidate.trial.share = shares[str(number)]
            self.measures.trials.keep(candidate.trial)
            self.learn(candidate)
