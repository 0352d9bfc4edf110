"""Searches for the fold that loses least of those that are fast enough."""

from collections.abc import Iterator
from functools import cached_property

from vitfold.folding.flops import Schedule
from vitfold.lab.tuning.search import AGAIN, CLOSE, FINALISTS, Candidate, Search
from vitfold.lab.tuning.shape import Shape, extremes
from vitfold.lab.tuning.trials import Trial

FAR = 0.95
"""What share of the time that it may take a fold takes that keeps the goal by far."""


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

    def finalists(self) -> list[Candidate]:
        """The best that keep the goal; the last is the best of those that keep it by far, as timing
        all again may refute what was near."""
        keepers = super().finalists()
        far = [c for c in self.timed if self.keeps(c) and c.share.median <= self.limit * FAR]
        safe = min((c for c in far if c not in keepers[:-1]), key=self.rank, default=None)
        if safe is None:
            return keepers
        others = [candidate for candidate in keepers if candidate is not safe]
        return [*others[: FINALISTS - 1], safe]

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
            if best is not None and not trial.beats(best.trial, shape.is_fine):
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
