"""What a tuning measures: how near a fold stays, and how fast it is in its runtime."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitfold.exporting.runtime import Runtime
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone
from vitfold.lab.tuning.trials import Share, Trial, Trials
from vitfold.methods import Base
from vitfold.tokens.modes import evaluating
from vitfold.tools.fidelity import Comparison, Fidelity, losses
from vitfold.tools.looks import Look, look
from vitfold.tools.measure import Throughput, interleave, quartiles, timed
from vitfold.tools.sensitivity import directions, fold_along, is_directed

BATCH = 32
"""How many images are compared at a time."""

SECONDS = 3.0
"""For how long a trial is timed, beside the dense model."""

ROUNDS = (5, 40)
"""The fewest and the most rounds in that time."""

LOOKED_AT = 32
"""So many images, at most, tell directions: more tell them hardly better, and take longer."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass
class Measures:
    """Figures of the folds of one model.

    dense: the model without a fold.
    images: `[N, C, H, W]`, which folds are compared on.
    runtime: where they are timed.
    """

    dense: nn.Module
    images: Tensor
    runtime: Runtime
    trials: Trials
    _near: dict[str, Fidelity] = field(default_factory=dict, init=False, repr=False)
    _costs: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _serving: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def trial(self, method: Base) -> Trial:
        """How near a fold stays to the dense model."""
        trial = self.trials.of(method)
        if trial is None:
            near = self._compared(self.folded(method))
            trial = Trial(method, near.result(), tuple(losses(near.all).tolist()))
            self.trials.keep(trial)
        return trial

    def time(self, trial: Trial) -> Share:
        """How fast it is, too."""
        if trial.share is None:
            trial.share = self.race({"": trial.method}, self._rounds)[""]
            self.trials.keep(trial)
        return trial.share

    def served_fidelity(self, method: Base) -> Fidelity:
        """How near what the runtime makes of a fold stays to the dense model in eager torch."""
        key = str(method)
        if key not in self._near:
            answering = self.runtime.seen(self._served(method), self.folded(method))
            self._near[key] = self._compared(answering, self._looks_alike).result()
        return self._near[key]

    def race(self, methods: Mapping[str, Base], rounds: int) -> dict[str, Share]:
        """The share of the dense model's time that each of these folds takes, in turn with it."""
        models = {"dense": self._served(None)}
        models |= {f"fold {name}": self._served(method) for name, method in methods.items()}
        runs = {name: timed(model, self.batch) for name, model in models.items()}
        seconds = interleave(runs, rounds, 2, lambda: None)
        self.dense_rate = Throughput.of(len(self.batch), seconds["dense"])
        return {name: _share(seconds[f"fold {name}"], seconds["dense"]) for name in methods}

    def flops(self, method: Base) -> float:
        """The share of the dense FLOPs that a fold costs."""
        key = str(method)
        if key not in self._costs:
            self._costs[key] = cost(find(self.folded(method))) / self._dense_flops
        return self._costs[key]

    def folded(self, method: Base | None) -> nn.Module:
        """A copy with the fold."""
        model = clone(self.dense)
        return model if method is None else self.fold(model, method)

    def fold(self, model: ModelT, method: Base) -> ModelT:
        """Fold a model, with what these images give the method."""
        return fold_along(model, method, self._basis if is_directed(method) else None)

    @property
    def dense_seconds(self) -> float:
        """What the dense model takes for a batch, in the median."""
        return len(self.batch) / self.dense_rate.median

    @cached_property
    def dense_rate(self) -> Throughput:
        """Images per second of the dense model, as it was timed last."""
        run = timed(self._served(None), self.batch)
        return Throughput.of(len(self.batch), interleave({"": run}, ROUNDS[0], 2, lambda: None)[""])

    @cached_property
    def batch(self) -> Tensor:
        """The images that are timed."""
        size = self.trials.setting.batch_size
        places = torch.arange(size) % len(self.images)
        return self.images[places].contiguous()

    @cached_property
    def _dense_flops(self) -> int:
        return cost(find(self.dense))

    @cached_property
    def _basis(self) -> Tensor:
        """In which directions tokens are compared, by a method that has any."""
        return directions(self.dense, self.images[:: -(-len(self.images) // LOOKED_AT)])

    @property
    def _rounds(self) -> int:
        least, most = ROUNDS
        return max(least, min(most, round(SECONDS / 2 / self.dense_seconds)))

    def _served(self, method: Base | None) -> nn.Module:
        """In the runtime; made once, as that takes longer than what is asked of it."""
        key = str(method)
        if key not in self._serving:
            self._serving[key] = self.runtime.serve(self.folded(method))
            for old in [name for name in self._serving if name != str(None)][:-KEPT]:
                del self._serving[old]
        return self._serving[key]

    def _compared(self, model: nn.Module, beside: list[Look] | None = None) -> Comparison:
        """A model beside the dense one in eager torch.

        beside: what that says, where it is looked at in another way.
        """
        comparison = Comparison()
        batches = self.images.split(BATCH)
        for images, dense in zip(batches, beside or self._looks, strict=True):
            comparison.add(_look(model, images), dense)
        return comparison

    @cached_property
    def _looks(self) -> list[Look]:
        return self._looks_of(self.dense)

    @cached_property
    def _looks_alike(self) -> list[Look]:
        """The same, of a model that is looked at as the runtime shows it."""
        return self._looks if self.runtime.eager else self._looks_of(self.runtime.dense(self.dense))

    def _looks_of(self, model: nn.Module) -> list[Look]:
        """What a model says of every batch."""
        return [_look(model, images) for images in self.images.split(BATCH)]


KEPT = 3
"""How many folds stay ready in the runtime, beside the dense model."""


def _look(model: nn.Module, images: Tensor) -> Look:
    with torch.inference_mode(), evaluating(model):
        return look(model, images)


def _share(ours: list[float], dense: list[float]) -> Share:
    low, median, high = quartiles([a / b for a, b in zip(ours, dense, strict=True)])
    return Share(median, low, high)
