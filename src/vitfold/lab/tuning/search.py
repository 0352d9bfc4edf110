"""The search for a fold: shapes that differ in one thing, from the best so far."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar

from vitfold.errors import MethodError
from vitfold.folding.families import find
from vitfold.folding.fit import Fit
from vitfold.folding.flops import Schedule
from vitfold.lab.tuning.costs import NOISE, Costs
from vitfold.lab.tuning.goal import Goal
from vitfold.lab.tuning.measures import Measures
from vitfold.lab.tuning.shape import Shape, extremes, outset
from vitfold.lab.tuning.trials import Share, Trial
from vitfold.tools.fidelity import Fidelity
from vitfold.tools.intervals import Estimate

CLOSE = 0.002
"""How much more than it is to cost a fold may be expected to."""

AGAIN = 3
"""How often a shape is solved anew, once its timing has taught something."""

HALVINGS = 4
"""How often the share that keeps a nearness is halved."""

DEEPEST = 0.3
"""The least share of the time that is looked at for a nearness."""

FINALISTS = 3

Tell = Callable[[float, str], None]
"""Gets how much of the budget is spent, from 0 to 1, and what is best so far."""


def silent(_spent: float, _best: str) -> None:
    """Tells nothing."""


@dataclass(frozen=True)
class Budget:
    """How long a search goes on.

    trials: how many folds it looks at; None: as many as there is time for.
    """

    deadline: float
    seconds: float
    trials: int | None

    def spent(self, trials: int) -> float:
        """How much of it is gone, from 0 to 1."""
        by_time = 1 - (self.deadline - time.monotonic()) / self.seconds
        return max(by_time, trials / self.trials if self.trials else 0.0)


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


class Search(ABC):
    """Looks at folds of one model until none that is near the best is better, or the budget is
    spent; the same figures give the same search.

    timed: candidates that were timed, keepers and others.
    seen: all folds that it looked at, in words.
    margin: the share of the goal that is aimed at, as timings differ.
    noise: how far off what is learned of costs may be.
    """

    margin: ClassVar[float] = 0.985
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
        """Look at shapes while there are any to look at."""
        for shape in self._shapes():
            self.consider(shape)
            if self.is_over:
                return

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent; tells how much is."""
        spent = self.budget.spent(len(self.seen))
        best = self.best
        words = "" if best is None else f"best so far: {self.told(best)}"
        self.tell(min(spent, 1.0), words)
        return spent >= 1

    def told(self, candidate: Candidate) -> str:
        """A fold in few words."""
        shape = candidate.shape
        cue = f" by {shape.cue}" if shape.cue else ""
        loss = f"{loss_name(candidate.trial.fidelity)} {candidate.trial.loss:.4f}"
        return f"{1 / candidate.share.median:.2f}x, {loss} ({shape.method}{cue})"

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


class ForSpeed(Search):
    """Keeps a share of the dense model's time, and loses least.

    limit: that share.
    """

    @cached_property
    def limit(self) -> float:
        """The share of the dense model's time, or FLOPs, that a fold may take."""
        setting = self.measures.trials.setting
        seconds = 1.0 if self.goal.name in RELATIVE else self.measures.dense_seconds
        return self.goal.level(seconds, setting.batch_size)

    @property
    def is_idle(self) -> bool:
        """Whether the dense model is fast enough."""
        return self.limit >= 1

    def keeps(self, candidate: Candidate) -> bool:
        """Whether it takes no more than it may."""
        return candidate.share.median <= self.limit

    def rank(self, candidate: Candidate) -> float:
        """What it loses."""
        return candidate.trial.loss

    def consider(self, shape: Shape) -> None:
        """Look at the fold that is just fast enough."""
        for _ in range(AGAIN):
            numbers = self.solve(shape, self.limit * self.margin)
            best = self.best
            if numbers is None and best is not None:
                return
            if numbers is None:
                numbers = shape.numbers(self.layout.patches / 2, self.layout)
            trial = self.look(shape, numbers)
            if best is not None and trial.loss >= best.trial.loss:
                return
            if trial.share is not None and self._is_timed(trial):
                return
            if self.keeps(self.time(shape, numbers, trial)):
                return

    def last_resorts(self) -> Iterator[Shape]:
        """Shapes that merge in few blocks, where merging takes longer than it saves."""
        yield from extremes(self.kinds[0], self.layout.depth)

    def _is_timed(self, trial: Trial) -> bool:
        return any(candidate.trial is trial for candidate in self.timed)


RELATIVE = ("speedup", "flops")


class ForFlops(ForSpeed):
    """Keeps a share of the dense FLOPs, which are counted and need no margin, and loses least."""

    margin = 1.0
    noise = 0.001

    def keeps(self, candidate: Candidate) -> bool:
        """Whether it costs no more than it may."""
        return self.measures.flops(candidate.trial.method) <= self.limit + CLOSE

    def learn(self, candidate: Candidate) -> None:
        """Times say nothing of FLOPs."""

    def solve(self, shape: Shape, level: float) -> Schedule | None:
        """The numbers with which it costs that share, counted."""
        for _ in range(AGAIN):
            numbers = super().solve(shape, level)
            if numbers is None:
                return None
            cost = self.measures.flops(shape.fold(numbers))
            self.costs.add(shape, numbers, cost)
            if abs(cost - level) <= CLOSE:
                break
        return numbers


Keeper = tuple[Schedule, Trial]
"""The numbers of a fold that is near enough, and how near."""

FURTHER = 0.7
"""How far below the best's share more is looked for, as a share of that."""


class ForNearness(Search):
    """Keeps a figure of nearness, and is fastest.

    least: what the figure has to be in eager torch.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.least = self.goal.value

    def keeps(self, candidate: Candidate) -> bool:
        """Whether it is near enough."""
        return figure(candidate.trial.fidelity, self.goal.name) >= self.least

    def rank(self, candidate: Candidate) -> float:
        """The time that it takes."""
        return candidate.share.median

    def consider(self, shape: Shape) -> None:
        """Look for the fold that saves most and is near enough, where it saves more than the
        best."""
        best = self.best
        if best is None:
            keeper = self._halve(shape, DEEPEST, 1.0, None)
        else:
            level = self.expected(best.shape, best.numbers) * self.margin
            keeper = self._near(shape, level)
            keeper = keeper and self._halve(shape, level * FURTHER, level, keeper)
        if keeper is not None:
            self.time(shape, *keeper)

    def settle(self, rounds: int) -> Candidate | None:
        """The same, of what is near enough in the runtime, too; where that is less near, more is
        asked of eager torch."""
        for _ in range(AGAIN):
            best = super().settle(rounds)
            if best is None or (lack := self._lack(best)) <= 0:
                return best
            self.least += lack
            self.consider(best.shape)
        return None

    def _lack(self, candidate: Candidate) -> float:
        """By how much it is less near there; of a classifier's embeddings a runtime shows
        nothing."""
        served = self.measures.served_fidelity(candidate.trial.method)
        if self.goal.name == "cosine" and served.kl is not None:
            return 0.0
        return self.goal.value - figure(served, self.goal.name)

    def _halve(self, shape: Shape, low: float, high: float, keeper: Keeper | None) -> Keeper | None:
        """The fold of the least share between both that is near enough."""
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            near = self._near(shape, middle)
            if near is None:
                low = middle
            else:
                high, keeper = middle, near
        return keeper

    def _near(self, shape: Shape, level: float) -> Keeper | None:
        """The fold of that share, where it is near enough."""
        if (numbers := self.solve(shape, level)) is None:
            return None
        trial = self.look(shape, numbers)
        near = figure(trial.fidelity, self.goal.name) >= self.least
        return (numbers, trial) if near else None


def figure(fidelity: Fidelity, name: str) -> float:
    """A figure of nearness; of what has no embedding, the cosine of its features."""
    value = getattr(fidelity, name)
    if name == "cosine" and value is None:
        value = fidelity.dense_cosine
    if not isinstance(value, Estimate):
        raise MethodError(f"{name}: this model gives nothing that has it: give {OTHER[name]}")
    return value.mean


OTHER = {"agreement": "cosine=...", "cosine": "agreement=..."}


def loss_name(fidelity: Fidelity) -> str:
    """What `Trial.loss` is of a model."""
    return "KL" if fidelity.kl is not None else "1 - cosine"


def search_for(goal: Goal) -> type[Search]:
    """How a goal is looked for."""
    if goal.is_near:
        return ForNearness
    return ForFlops if goal.name == "flops" else ForSpeed
