"""Many folds of one model on the same images, beside what else costs less: smaller images, and
smaller models."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.data import Renormalized
from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of, folds
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone, fold
from vitfold.folding.inputs import Inputs
from vitfold.methods import create_method, ready
from vitfold.saving import weights
from vitfold.tokens.modes import mixed
from vitfold.tools.bench import BOUND, DENSE, FOLDED, bound
from vitfold.tools.measure import Progress, batch_of, compare, flops, random_inputs
from vitfold.tools.trace import trace
from vitfold.tools.validate import Batch, Predictions, Report, predict, score

SMALLER_INPUT, SMALLER_MODEL = "smaller input", "smaller model"

SAMPLE = 64
"""How many images say what a candidate costs, where that depends on them."""

Key = tuple[str, float, str]


@dataclass(frozen=True)
class Speed:
    """How fast it is at one batch size.

    speedup: the time of the dense model over its own.
    share: the time of free slicing over its own, where it folds.
    """

    batch_size: int
    images_per_second: float
    speedup: float
    share: float | None


@dataclass(frozen=True)
class Row:
    """What came of one candidate.

    flops: the share of the dense FLOPs that it was asked for.
    detail: the method with its options, the size of the images, the name of the model.
    source: which of several trained models it is.
    counts: how many tokens leave every block.
    changed: the images whose prediction is not the dense model's.
    """

    method: str
    flops: float
    detail: str
    report: Report
    gflops: float
    speeds: tuple[Speed, ...]
    source: str = ""
    counts: list[float] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)

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
        flat |= figures | {"gflops": self.gflops}
        for speed in self.speeds:
            for name in ("images_per_second", "speedup", "share"):
                flat[f"{name}_b{speed.batch_size}"] = getattr(speed, name)
        return flat | {"counts": self.counts, "changed": self.changed}


@dataclass(frozen=True)
class Candidate:
    """Something that costs less than the dense model, made when its turn comes.

    source: where it comes from, if it is made of other weights.
    """

    method: str
    flops: float
    make: Callable[[], nn.Module]
    source: str = ""

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.method, self.flops, self.source


def candidates(
    model: nn.Module,
    methods: Sequence[str],
    shares: Sequence[float],
    options: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """The dense model, and every method at every share."""
    made = [Candidate(DENSE, 1.0, lambda: clone(model))]
    for name in methods:
        if name not in ready():
            raise MethodError(
                f"{name} is no method for a sweep over shares: one that learns is trained for each "
                f"by `vitfold train`, and then given as trained; without, there are {ready()}"
            )
        for share in shares:
            method = functools.partial(create_method, name, {**(options or {}), "flops": share})
            made.append(Candidate(name, share, functools.partial(_fold, model, method)))
    return made


def _fold(model: nn.Module, method: Callable[[], Any]) -> nn.Module:
    return fold(clone(model), method())


def smaller_inputs(model: nn.Module, shares: Sequence[float]) -> list[Candidate]:
    """The model on smaller images, at the size that comes nearest to every share."""
    found = find(model)
    if not hasattr(found.trunk, "set_input_size"):
        return []
    dense = cost(found)
    height, width = found.layout().grid or (0, 0)
    grids = [(rows, max(1, round(rows * width / height))) for rows in range(1, height)]
    made = {grid: cost(find(_smaller(model, *grid))) / dense for grid in grids}
    nearest = {
        share: min(made, key=lambda grid: abs(made[grid] - share)) for share in shares if made
    }
    return [
        Candidate(SMALLER_INPUT, share, functools.partial(_smaller, model, *grid))
        for share, grid in nearest.items()
    ]


def smaller_models(models: Mapping[str, Callable[[], nn.Module]]) -> list[Candidate]:
    """Other models, on the same images."""
    return [Candidate(f"{SMALLER_MODEL} {name}", 0.0, make) for name, make in models.items()]


def trained(models: Mapping[str, nn.Module]) -> list[Candidate]:
    """Models that come folded, with what their methods have learned, by where they come from."""
    return [_trained(name, model) for name, model in models.items()]


def _trained(name: str, model: nn.Module) -> Candidate:
    method = fold_of(model).method
    options = method.to_json()
    asked = {name: getattr(method, name, None) for name in ("r", "flops")}
    known = {name: value for name, value in asked.items() if value is not None}
    plain = create_method(method.name, known).to_json() | {"r": None}  # the number is told
    found = {field.name for field in fields(method) if not field.repr}
    chosen = [
        f"{option}={value}"
        for option, value in options.items()
        if option not in found and plain.get(option) != value
    ]
    source = f"{name} {weights.fingerprint(model.state_dict())[:12]}"
    called = " ".join([method.name, *chosen])
    return Candidate(called, known.get("flops", 0.0), lambda: model, source)


class Smaller(nn.Module):
    """A model that sees its images smaller than they are."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, x: Tensor) -> Any:
        """What the model says of the smaller images."""
        return self.model(F.interpolate(x, self.size, mode="bicubic", antialias=True))


def _smaller(model: nn.Module, rows: int, columns: int) -> Smaller:
    small = clone(model)
    found = find(small)
    height, width = found.layout().grid or (1, 1)
    _, tall, wide = found.size
    size = (tall * rows // height, wide * columns // width)
    found.trunk.set_input_size(img_size=size)
    return Smaller(small, size).eval()


def sweep(
    model: nn.Module,
    asked: Iterable[Candidate],
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
    dense = clone(model).eval()
    expected: Predictions | None = None
    sample: Tensor | None = None
    for candidate in asked:
        try:
            made = candidate.make().eval()
        except MethodError as error:
            skip(f"{candidate.method} at {candidate.flops}: {error}")
            continue
        if expected is None:
            expected = predict(dense, batches(), amp=amp, progress=progress)
        ours = (
            expected
            if candidate.method == DENSE
            else predict(made, batches(), amp=amp, progress=progress)
        )
        if sample is None and _ragged(made):
            sample = _sample(batches(), len(expected.labels), max(SAMPLE, *sizes), dense)
        inputs: Callable[[int], Inputs] = functools.partial(random_inputs, dense)
        if sample is not None and _ragged(made):
            inputs = _own(sample)
        timing = Timing(inputs, tuple(sizes), repeats, amp)
        yield _row(candidate, made, dense, ours, expected, timing), made


def _ragged(model: nn.Module) -> bool:
    """Whether what it costs depends on the images."""
    return any(record.method.ragged for record in folds(model))


def _sample(batches: Iterable[Batch], total: int, count: int, model: nn.Module) -> Tensor:
    """So many of `total` images, evenly spaced, where the model is."""
    chosen = {number * total // count for number in range(count)}
    seen: list[Tensor] = []
    first = 0
    for images, _ in batches:
        places = [place for place in range(len(images)) if first + place in chosen]
        seen.append(images[places].to(next(model.parameters()).device))
        first += len(images)
    return torch.cat(seen)


def _own(images: Tensor) -> Callable[[int], Tensor]:
    """As many of them as are asked for, evenly spaced, or in turn where there are fewer."""

    def some(count: int) -> Tensor:
        places = torch.arange(count, device=images.device)
        few = count < len(images)
        return images[places * len(images) // count if few else places % len(images)]

    return some


@dataclass(frozen=True)
class Timing:
    """How candidates are timed, and what on.

    inputs: as many images as are asked for.
    """

    inputs: Callable[[int], Inputs]
    sizes: tuple[int, ...]
    repeats: int
    amp: torch.dtype | None


def _row(
    candidate: Candidate,
    made: nn.Module,
    dense: nn.Module,
    ours: Predictions,
    expected: Predictions,
    timing: Timing,
) -> Row:
    changed = (ours.best[:, 0] != expected.best[:, 0]).nonzero().flatten().tolist()
    some = timing.inputs(SAMPLE if _ragged(made) else 1)
    return Row(
        candidate.method,
        candidate.flops,
        _detail(made),
        score(ours, expected),
        gigaflops(made, some),
        _speeds(dense if candidate.method == DENSE else made, dense, timing),
        candidate.source,
        _counts(made, some),
        changed,
    )


def gigaflops(model: nn.Module, images: Inputs) -> float:
    """What one image costs in the vision transformer of a candidate."""
    return flops(_trunk(model), images) / batch_of(images) / 1e9


def _trunk(model: nn.Module) -> nn.Module:
    return model if isinstance(model, Smaller) else find(model).trunk


def _detail(model: nn.Module) -> str:
    if records := folds(model):
        return str(records[0].method)
    if isinstance(model, Smaller):
        return f"{model.size[0]} x {model.size[1]} px"
    return type(model.model if isinstance(model, Renormalized) else model).__name__


def _counts(model: nn.Module, some: Inputs) -> list[float]:
    if folds(model):
        return [round(sum(counts) / len(counts), 2) for counts in trace(model, some).counts]
    found = find(model)
    return [found.layout().tokens] * found.depth


def _speeds(made: nn.Module, dense: nn.Module, timing: Timing) -> tuple[Speed, ...]:
    named = {DENSE: _trunk(dense)}
    if made is not dense:
        named[FOLDED] = _trunk(made)
    if folds(made):
        some = timing.inputs(SAMPLE) if _ragged(made) else None
        named[BOUND] = find(bound(made, some)).trunk
    return tuple(_speed(named, dense, size, timing) for size in timing.sizes)


def _speed(named: Mapping[str, nn.Module], dense: nn.Module, size: int, timing: Timing) -> Speed:
    device = next(dense.parameters()).device
    with mixed(device, timing.amp):
        rates = compare(named, timing.inputs(size), repeats=timing.repeats, warmup=1)
    bound = rates[BOUND].median if BOUND in rates else None
    ours = rates.get(FOLDED, rates[DENSE]).median
    return Speed(size, ours, ours / rates[DENSE].median, None if bound is None else ours / bound)
