"""The search for the fastest of the folds that are near enough."""

from vitfold.errors import MethodError
from vitfold.folding.flops import Schedule
from vitfold.lab.tuning.search import AGAIN, Candidate, Search
from vitfold.lab.tuning.shape import Shape
from vitfold.lab.tuning.trials import Trial
from vitfold.tools.fidelity import Fidelity
from vitfold.tools.intervals import Estimate

HALVINGS = 4
"""How often the share that keeps a nearness is halved."""

DEEPEST = 0.3
"""The least share of the time that is looked at for a nearness."""

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
        """The same, of what is near enough in the runtime, too; where that is less near, as much
        more is asked of eager torch."""
        for _ in range(AGAIN):
            best = super().settle(rounds)
            if best is None or (served := self._served(best)) >= self.goal.value:
                return best
            self.least = self.goal.value + figure(best.trial.fidelity, self.goal.name) - served
            self.consider(best.shape)
        return None

    def _served(self, candidate: Candidate) -> float:
        """How near it is there; of a classifier's embeddings a runtime shows nothing."""
        served = self.measures.served_fidelity(candidate.trial.method)
        hidden = self.goal.name == "cosine" and served.kl is not None
        return figure(candidate.trial.fidelity if hidden else served, self.goal.name)

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
