"""Sweep: accuracy, fidelity, cost and speed of many candidates on the same images."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError, VitfoldError
from vitfold.exporting.runtime import Runtime
from vitfold.folding.calls import folds
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.folding.inputs import Inputs
from vitfold.lab.candidate import Candidate, detail, gigaflops, timed_trunk
from vitfold.lab.timing import Speed, Timing
from vitfold.tools.baselines import BOUND, DENSE, FOLDED, bound
from vitfold.tools.fidelity import Comparison, Fidelity
from vitfold.tools.looks import Look
from vitfold.tools.measure import Progress, random_inputs
from vitfold.tools.trace import trace
from vitfold.tools.validate import Batch, Predictions, Predictor, Report, score

Batches = Callable[[], Iterable[Batch | Tensor]]
"""The same images at every call, with labels or without."""

SAMPLE = 64
"""How many images say what a candidate costs, where that depends on them."""

EAGER = Runtime()


@dataclass(frozen=True)
class Row:
    """The results of one candidate.

    flops: the share of the dense FLOPs that it was asked for.
    detail: the method with its options, the size of the images, the name of the model.
    report: its accuracy; None of images without labels.
    fidelity: how near it stays to the dense model.
    gflops: of one image, two operations per multiply-add.
    flops_share: that, over the dense model's: the share that it really costs.
    source: which of several trained models it is.
    counts: how many tokens leave every block.
    changed: the images whose prediction is not the dense model's.
    runtime: what it was timed in, and answered in.
    """

    method: str
    flops: float
    detail: str
    report: Report | None
    fidelity: Fidelity
    gflops: float
    flops_share: float
    speeds: tuple[Speed, ...]
    source: str = ""
    counts: list[float] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    runtime: Runtime = EAGER

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
            **self.runtime.tags,
        }
        right = {} if self.report is None else self.report.to_json()
        right.pop("images_per_second", None)
        flat |= right | self.fidelity.to_json() | right
        flat |= {"gflops": self.gflops, "flops_share": self.flops_share}
        for speed in self.speeds:
            for name in ("images_per_second", "speedup", "share", "steady"):
                flat[f"{name}_b{speed.batch_size}"] = getattr(speed, name)
        return flat | {"counts": self.counts, "changed": self.changed}


def sweep(
    model: nn.Module,
    entries: Iterable[Candidate],
    batches: Batches,
    *,
    sizes: Sequence[int] = (1, 32),
    repeats: int = 5,
    amp: torch.dtype | None = None,
    runtime: Runtime = EAGER,
    progress: Progress = lambda: None,
    skip: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Row, nn.Module]]:
    """A row for every candidate, with its model. A share that a method cannot reach is skipped, and
    what the runtime does not take.

    batches: gives the same images at every call, pairs with labels or images alone, of which there
        is no accuracy.
    runtime: what candidates answer in and are timed in, and the dense model beside them; answers
        are compared with those of the dense model in eager torch.
    progress: called for every batch of every candidate, and `MORE` times.
    """
    evaluator = _Evaluator(
        clone(model).eval(), batches, tuple(sizes), repeats, amp, runtime, progress
    )
    for candidate in entries:
        dense = evaluator.served  # what a runtime does not take of it, it takes of nothing
        try:
            contender = candidate.make().eval()
        except MethodError as error:
            skip(f"{candidate.method} at {candidate.flops}: {error}")
            continue
        try:
            served = dense if candidate.method == DENSE else evaluator.serve(contender)
        except VitfoldError as error:
            skip(f"{candidate.method} at {candidate.flops}: {error}")
            continue
        yield evaluator.row(candidate, contender, served), contender


MORE = 2
"""How often a candidate tells its progress besides its batches: once it is served, and timed."""


@dataclass(frozen=True)
class _Served:
    """What a runtime makes of a candidate.

    answering: for its answers.
    timed: its vision transformer, as `FOLDED`, and where it folds the bound's, as `BOUND`.
    """

    answering: nn.Module
    timed: dict[str, nn.Module]


@dataclass(frozen=True)
class _Evaluator:
    """Compares models with the dense one, on the same images."""

    dense: nn.Module
    batches: Batches
    sizes: tuple[int, ...]
    repeats: int
    amp: torch.dtype | None
    runtime: Runtime
    progress: Progress

    @functools.cached_property
    def served(self) -> _Served:
        """The dense model in the runtime."""
        return self.serve(self.dense)

    def serve(self, model: nn.Module) -> _Served:
        """A model in the runtime."""
        answering, trunk = self.runtime.answering(model), timed_trunk(model)
        timed = {FOLDED: answering if trunk is model else self.runtime.serve(trunk)}
        if folds(model):
            slicing = bound(model, self._timing(model).sample)
            timed[BOUND] = self.runtime.serve(find(slicing).trunk)
        return _Served(answering, timed)

    def row(self, candidate: Candidate, model: nn.Module, served: _Served) -> Row:
        """The results of one candidate."""
        self.progress()
        dense, _ = self.answers
        ours, fidelity = self._compare(served)
        timing = self._timing(model)
        images = timing.inputs(1) if timing.sample is None else timing.sample
        gflops = gigaflops(model, images)
        beside = {} if served is self.served else served.timed
        speeds = timing.speeds({DENSE: self.served.timed[FOLDED], **beside})
        self.progress()
        return Row(
            candidate.method,
            candidate.flops,
            detail(model),
            score(ours, dense) if len(ours.labels) else None,
            fidelity,
            gflops,
            gflops / self.gflops,
            speeds,
            candidate.source,
            _counts(model, images),
            _changed(ours.best, dense.best),
            self.runtime,
        )

    @functools.cached_property
    def answers(self) -> tuple[Predictions, list[Look]]:
        """What the dense model predicts in eager torch, and what it says of every batch."""
        predictor = self._predictor(self.runtime.dense(self.dense))
        looks = [look.kept() for look in self._looks(predictor)]
        return predictor.predictions(), looks

    @functools.cached_property
    def gflops(self) -> float:
        """Billions of operations for an image in the dense model."""
        return gigaflops(self.dense, random_inputs(self.dense, 1))

    @functools.cached_property
    def sample(self) -> Tensor:
        """Some of the images, evenly spaced, where the model is."""
        total = sum(look.images for look in self.answers[1])
        count = max(SAMPLE, *self.sizes)
        return _spread(self.batches(), total, count).to(self._device)

    def _compare(self, served: _Served) -> tuple[Predictions, Fidelity]:
        """What a model predicts, and how near it stays to the dense one."""
        dense, looks = self.answers
        if served.answering is self.dense:
            return dense, _compared(looks, looks)
        predictor = self._predictor(served.answering)
        fidelity = _compared(self._looks(predictor), looks)
        return predictor.predictions(), fidelity

    @property
    def _device(self) -> torch.device:
        return next(self.dense.parameters()).device

    def _predictor(self, model: nn.Module) -> Predictor:
        return Predictor(model, self._device, self.amp)

    def _looks(self, predictor: Predictor) -> Iterator[Look]:
        """What a model says of every batch."""
        for batch in self.batches():
            if isinstance(batch, Tensor):
                yield predictor.look(batch)
            else:
                yield predictor.update(*batch)
            self.progress()

    def _timing(self, model: nn.Module) -> Timing:
        """On noise; where what a model costs depends on the images, on theirs."""
        if not any(record.method.ragged for record in folds(model)):
            inputs: Callable[[int], Inputs] = functools.partial(random_inputs, self.dense)
            return Timing(inputs, self.sizes, self.repeats, self.amp)
        some = functools.partial(_some, self.sample)
        return Timing(some, self.sizes, self.repeats, self.amp, some(SAMPLE))


def _compared(ours: Iterable[Look], dense: Iterable[Look]) -> Fidelity:
    comparison = Comparison()
    for pair in zip(ours, dense, strict=True):
        comparison.add(*pair)
    return comparison.result()


def _changed(ours: Tensor, dense: Tensor) -> list[int]:
    """The images whose likeliest class is another; none where nobody tells classes apart."""
    if len(ours) != len(dense):
        return []
    places: list[int] = (ours[:, 0] != dense[:, 0]).nonzero().flatten().tolist()
    return places


def images_in(batch: Batch | Tensor) -> Tensor:
    """`[B, C, H, W]`: the images of a batch, with labels or without."""
    return batch if isinstance(batch, Tensor) else batch[0]


def _spread(batches: Iterable[Batch | Tensor], total: int, count: int) -> Tensor:
    """`count` of `total` images, evenly spaced."""
    places = {number * total // count for number in range(count)}
    sample: list[Tensor] = []
    first = 0
    for images in map(images_in, batches):
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
