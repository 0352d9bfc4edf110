"""Where tokens leave: a schedule for one model and one method, from images without labels.

How many tokens may leave an early block differs from model to model by more than methods differ.
So it is measured: schedules of the same cost are tried, and the one is kept by which the model says
most nearly what it says dense.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.calls import Fold, fold_of
from vitfold.folding.families import find
from vitfold.folding.fit import CLOSE
from vitfold.folding.flops import Schedule
from vitfold.folding.fold import clone, fold_to_learn
from vitfold.folding.schedules import share_of, solved
from vitfold.methods import Method
from vitfold.methods.schedule import whole
from vitfold.tokens.modes import evaluating
from vitfold.tools.fidelity import compared, is_less, losses
from vitfold.tools.looks import look
from vitfold.tools.measure import Progress
from vitfold.tools.sensitivity import fold_along

BATCH = 16

ALL = 1000.0
"""The weight of a block that as many tokens leave as can."""

PATIENCE = 2
"""How many more dense blocks are tried in a row without gain."""

RAMPS = (-0.5, 0.5)

FACTORS = (0.5, 1.5)
"""What the weight of one block is multiplied by: first less leaves it, then more."""


Weights = tuple[float, ...]
"""How much of what leaves, leaves each block."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A schedule that was tried.

    method: with its numbers.
    weights: what these follow from.
    share: of the dense FLOPs.
    loss: `[N]`, of every image.
    """

    method: Method
    weights: Weights
    share: float
    loss: Tensor

    @property
    def mean(self) -> float:
        """The mean loss."""
        return float(self.loss.mean())

    def beats(self, other: "Placed", surely: bool) -> bool:
        """Whether less is lost, on the same images; surely: by more than the standard error."""
        return is_less(self.loss, other.loss, surely)


def tries(depth: int, cues: int = 1) -> int:
    """How many schedules are tried, at most; `progress` is called after each."""
    starts, ramps = 2 + depth // 2, len(RAMPS) * (1 + depth // 2)
    return max(cues, 1) * starts + ramps + len(FACTORS) * (depth - 1)


def placed(
    model: nn.Module,
    method: Method,
    images: Tensor,
    cues: Sequence[str] = (),
    progress: Progress = lambda: None,
    basis: Tensor | None = None,
) -> Method:
    """The method with the numbers for every block that cost its share of the FLOPs, and with which
    the model says most nearly what it says dense.

    model: without a fold.
    cues: what tokens may be compared by (default: what the method says).
    basis: in which directions, of a method that has any.
    """
    return searched(model, method, images, cues, progress, basis).method


def searched(
    model: nn.Module,
    method: Method,
    images: Tensor,
    cues: Sequence[str],
    progress: Progress,
    basis: Tensor | None = None,
) -> Placed:
    """The same, with the weights that its numbers follow from."""
    trials = Trials(model, images, progress, basis)
    with torch.inference_mode(), evaluating(model), evaluating(trials.model):
        searches = [Search(trials, one) for one in _by_cues(method, cues)]
        for search in searches:
            search.start()
        search = min(searches, key=lambda search: search.best.mean)
        search.refine()
        return search.best


def _by_cues(method: Method, cues: Sequence[str]) -> list[Method]:
    if cues and not _takes(method, "cue"):
        raise MethodError(f"{type(method).__name__} compares by no cue: leave out cues")
    options: list[dict[str, Any]] = [{"cue": cue} for cue in cues]
    return [replace(method, **each) for each in options or [{}]]


class Trials:
    """Folds a model by schedules of one cost, and measures how far each leads from the dense one.

    model: a copy, which is folded.
    images: `[N, C, H, W]`.
    basis: the directions in which tokens are compared, of a method that has any.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, progress: Progress, basis: Tensor | None
    ) -> None:
        self.model, self.progress, self.basis = clone(model), progress, basis
        self.layout = find(model).layout()
        self.batches = images.split(BATCH)
        with torch.inference_mode(), evaluating(model):
            self.looks = [look(model, batch).kept() for batch in self.batches]

    def solve(self, method: Method, weights: Weights, most: float) -> Placed | None:
        """The schedule of these weights that costs the method's share, measured; None where there
        is none, or none that costs `most` at most."""
        record = fold_of(fold_to_learn(self.model, idle(method, weights)))
        try:
            schedule = schedule_of(record, method, weights)
        except MethodError:  # out of reach
            return None
        share = share_of(record, schedule)
        return self._measured(_with(method, schedule), weights, share) if share <= most else None

    def _measured(self, method: Method, weights: Weights, share: float) -> Placed:
        model = fold_along(self.model, method, self.basis)
        pairs = zip(self.batches, self.looks, strict=True)
        loss = [losses(compared(look(model, batch).kept(), dense)) for batch, dense in pairs]
        self.progress()
        return Placed(method, weights, share, torch.cat(loss))


def idle(method: Method, weights: Weights) -> Method:
    """The method with nothing to remove, as it is before its numbers are known."""
    skip = {"skip": first_of(weights)} if _takes(method, "skip") else {}
    options: dict[str, Any] = {"r": 0, "flops": None, "inflection": None, **skip}
    return replace(method, **options)


def schedule_of(record: Fold, method: Method, weights: Weights) -> Schedule:
    """The schedule of these weights that costs the method's share.

    record: of a fold by `idle`.
    """
    patches = record.family.layout().patches

    def spread(rate: float, depth: int, first: int) -> Schedule:
        means = (rate * weights[block] * (block >= first) for block in range(depth))
        return possible(method, whole(means), patches)

    assert method.flops is not None  # it was checked before
    return possible(method, solved(record, method.flops, first_of(weights), spread), patches)


def first_of(weights: Weights) -> int:
    """The first block that tokens leave."""
    return next(block for block, weight in enumerate(weights) if weight)


def possible(method: Method, numbers: Sequence[int], patches: int) -> Schedule:
    """Of these numbers what can leave, block by block."""
    result: list[int] = []
    for number in numbers:
        result.append(min(number, method.most(patches)))
        patches -= result[-1]
    return tuple(result)


def _takes(method: Method, option: str) -> bool:
    return option in {field.name for field in dataclasses.fields(method)}


def _with(method: Method, schedule: Schedule) -> Method:
    """The method with numbers in place of a share; what is dense follows from them."""
    options: dict[str, Any] = {"r": list(schedule), "flops": None, "inflection": None}
    if _takes(method, "skip"):
        options["skip"] = next((block for block, r in enumerate(schedule) if r), 0)
    return replace(method, **options)


class Search:
    """Looks for the best schedule of one method.

    best: so far.
    most: what a schedule may cost: what is asked for, but for rounding to whole tokens.
    """

    def __init__(self, trials: Trials, method: Method) -> None:
        self.trials, self.method, self.depth = trials, method, trials.layout.depth
        even = trials.solve(method, (1.0,) * self.depth, math.inf)
        if even is None:
            raise MethodError(f"flops={method.flops} cannot be reached by removing patch tokens")
        self.best = even
        self.most = max(method.flops or 1.0, even.share) + CLOSE

    def start(self) -> None:
        """The same number leaves every block, after some dense ones; or as many as can leave the
        last one, which costs nothing where only the class token is read."""
        self._gains((*self.best.weights[:-1], ALL))
        idle = 0
        for first in range(1, self.depth // 2 + 1):
            gains = self._gains((0.0,) * first + self.best.weights[first:])
            idle = 0 if gains else idle + 1
            if idle == PATIENCE:
                break

    def refine(self) -> None:
        """More leaves early, or late, after as many dense blocks or more; then less or more leaves
        one block, as far as the images can tell."""
        even = self.best.weights
        for ramp in RAMPS:
            for first in range(first_of(even), self.depth // 2 + 1):
                self._gains(ramped((0.0,) * first + even[first:], ramp))
        for block in range(self.depth - 1):
            for factor in FACTORS if self.best.weights[block] else ():
                weights = list(self.best.weights)
                weights[block] *= factor
                if self._gains(tuple(weights), surely=True):
                    break

    def _gains(self, weights: Weights, surely: bool = False) -> bool:
        """Whether these weights are better; then they are the best."""
        other = self.trials.solve(self.method, weights, self.most)
        if other is None or not (other.beats(self.best, surely)):
            return False
        self.best = other
        return True


def ramped(weights: Weights, ramp: float) -> Weights:
    """Weights times a ramp from `1 - ramp` to `1 + ramp` over the blocks that tokens leave."""
    first = first_of(weights)
    run = max(len(weights) - 1 - first, 1)
    return tuple(w * (1 - ramp + 2 * ramp * (b - first) / run) for b, w in enumerate(weights))
