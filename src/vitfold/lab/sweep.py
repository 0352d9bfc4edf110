"""Sweep: accuracy, cost and speed of many candidates on the same images."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.calls import folds
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.folding.inputs import Inputs
from vitfold.lab.candidate import Candidate, detail, gigaflops
from vitfold.lab.timing import Speed, Timing
from vitfold.tools.baselines import DENSE
from vitfold.tools.measure import Progress, random_inputs
from vitfold.tools.trace import trace
from vitfold.tools.validate import Batch, Predictions, Report, predict, score

SAMPLE = 64
"""How many images say what a candidate costs, where that depends on them."""


@dataclass(frozen=True)
class Row:
    """The results of one candidate.

    flops: the share of the dense FLOPs that it was asked for.
    detail: the method with its options, the size of the images, the name of the model.
    gflops: of one image, two operations per multiply-add.
    flops_share: that, over the dense model's: the share that it really costs.
    source: which of several trained models it is.
    counts: how many tokens leave every block.
    changed: the images whose prediction is not the dense model's.
    """

    method: str
    flops: float
    detail: str
    report: Report
    gflops: float
    flops_share: float
    speeds: tuple[Speed, ...]
    source: str = ""
    counts: list[float] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)

    @property
    def steady(self) -> bool:
        """Whether its speeds are possible: none is above the bound."""
        return all(speed.steady for speed in self.speeds)

    def to_json(self) -> dict[str, Any]:
        """One flat row: speeds by batch size."""
        flat: dict[str, Any] = {
            "method": self.method,
            "flops": self.flops,
            "detail": self.detail,
            "source": self.source,
        }
        figures = self.report.to_json()
        del figures["images_per_second"]
        flat |= figures | {"gflops": self.gflops, "flops_share": self.flops_share}
        for speed in self.speeds:
            for name in ("images_per_second", "speedup", "share", "steady"):
                flat[f"{name}_b{speed.batch_size}"] = getattr(speed, name)
        return flat | {"counts": self.counts, "changed": self.changed}


def sweep(
    model: nn.Module,
    entries: Iterable[Candidate],
    batches: Callable[[], Iterable[Batch]],
    *,
    sizes: Sequence[int] = (1, 32),
    repeats: int = 5,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
    skip: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Row, nn.Module]]:
    """A row for every candidate, with its model. A share that a method cannot reach is skipped.

    batches: gives the same labelled images at every call.
    progress: called for every batch of every candidate.
    """
    evaluator = _Evaluator(clone(model).eval(), batches, tuple(sizes), repeats, amp, progress)
    for candidate in entries:
        try:
            contender = candidate.make().eval()
        except MethodError as error:
            skip(f"{candidate.method} at {candidate.flops}: {error}")
            continue
        yield evaluator.row(candidate, contender), contender


@dataclass(frozen=True)
class _Evaluator:
    """Compares models with the dense one, on the same images."""

    dense: nn.Module
    batches: Callable[[], Iterable[Batch]]
    sizes: tuple[int, ...]
    repeats: int
    amp: torch.dtype | None
    progress: Progress

    def row(self, candidate: Candidate, model: nn.Module) -> Row:
        """The results of one candidate."""
        is_dense = candidate.method == DENSE
        dense = self.predictions
        ours = dense if is_dense else self._predict(model)
        timing = self._timing(model)
        images = timing.inputs(1) if timing.sample is None else timing.sample
        gflops = gigaflops(model, images)
        return Row(
            candidate.method,
            candidate.flops,
            detail(model),
            score(ours, dense),
            gflops,
            gflops / self.gflops,
            timing.speeds(self.dense if is_dense else model, self.dense),
            candidate.source,
            _counts(model, images),
            (ours.best[:, 0] != dense.best[:, 0]).nonzero().flatten().tolist(),
        )

    @functools.cached_property
    def predictions(self) -> Predictions:
        """The predictions of the dense model."""
        return self._predict(self.dense)

    @functools.cached_property
    def gflops(self) -> float:
        """Billions of operations for an image in the dense model."""
        return gigaflops(self.dense, random_inputs(self.dense, 1))

    @functools.cached_property
    def sample(self) -> Tensor:
        """Some of the images, evenly spaced, where the model is."""
        total, count = len(self.predictions.labels), max(SAMPLE, *self.sizes)
        return _spread(self.batches(), total, count).to(next(self.dense.parameters()).device)

    def _predict(self, model: nn.Module) -> Predictions:
        return predict(model, self.batches(), amp=self.amp, progress=self.progress)

    def _timing(self, model: nn.Module) -> Timing:
        """On noise; where what a model costs depends on the images, on theirs."""
        if not any(record.method.ragged for record in folds(model)):
            inputs: Callable[[int], Inputs] = functools.partial(random_inputs, self.dense)
            return Timing(inputs, self.sizes, self.repeats, self.amp)
        some = functools.partial(_some, self.sample)
        return Timing(some, self.sizes, self.repeats, self.amp, some(SAMPLE))


def _spread(batches: Iterable[Batch], total: int, count: int) -> Tensor:
    """`count` of `total` images, evenly spaced."""
    places = {number * total // count for number in range(count)}
    sample: list[Tensor] = []
    first = 0
    for images, _ in batches:
        sample.append(images[[place for place in range(len(images)) if first + place in places]])
        first += len(images)
    return torch.cat(sample)


def _some(images: Tensor, count: int) -> Tensor:
    """As many of them as are asked for, evenly spaced, or in turn where there are fewer."""
    places = torch.arange(count, device=images.device)
    few = count < len(images)
    return images[places * len(images) // count if few else places % len(images)]


def _counts(model: nn.Module, images: Inputs) -> list[float]:
    if folds(model):
        return [round(sum(counts) / len(counts), 2) for counts in trace(model, images).counts]
    trunk = find(model)
    return [trunk.layout().tokens] * trunk.depth
