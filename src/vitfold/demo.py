"""Every method on the embedded model, on held-out digits: what `vitfold demo` shows."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.bench import BOUND, DENSE, FOLDED, clone, free_slicing, removed
from vitfold.digits import create_digits, load_split
from vitfold.fold import fold
from vitfold.measure import compare, flops
from vitfold.methods import METHODS, create_method
from vitfold.validate import Report, Score

SHARES = (0.75, 0.6, 0.5)
BATCH = 32
TIMED = 16
ROUNDS = 2


@dataclass(frozen=True)
class Row:
    """One fold of the embedded model. `share` is that of the free-slicing bound."""

    method: str
    flops: float
    accuracy: float
    low: float
    high: float
    agreement: float
    gflops: float
    images_per_second: float
    speedup: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """By field name."""
        return asdict(self)


def steps() -> int:
    """How many rows `rows` yields."""
    return 1 + len(METHODS) * len(SHARES)


def rows() -> Iterator[tuple[Row, nn.Module]]:
    """The dense model first, then every method at every share, each with its model."""
    dense = create_digits().eval()
    images, labels = load_split("test")
    expected = _logits(dense, images)
    yield _row("dense", 1.0, dense, dense, images, _report(expected, expected, labels)), dense
    for name in METHODS:
        for share in SHARES:
            model = fold(clone(dense), create_method(name, {"flops": share}))
            report = _report(_logits(model, images), expected, labels)
            yield _row(name, share, model, dense, images, report), model


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(BATCH)])


def _report(logits: Tensor, dense: Tensor, labels: Tensor) -> Report:
    score = Score()
    score.add(logits, dense, labels, seconds=0.0)
    return score.report()


def _row(
    name: str, share: float, model: nn.Module, dense: nn.Module, images: Tensor, report: Report
) -> Row:
    bound = dense if model is dense else free_slicing(model, removed(model))
    named = {DENSE: dense, BOUND: bound, FOLDED: model}
    rates = compare(named, images[:TIMED], repeats=ROUNDS, warmup=1)
    return Row(
        method=name,
        flops=share,
        accuracy=report.top1,
        low=report.top1_low,
        high=report.top1_high,
        agreement=report.agreement,
        gflops=flops(model, images[:1]) / 1e9,
        images_per_second=rates[FOLDED].median,
        speedup=rates[FOLDED].median / rates[DENSE].median,
        share=rates[FOLDED].median / rates[BOUND].median,
    )


def picture_batch(count: int = 4) -> Tensor:
    """A few held-out digits to draw."""
    images, labels = load_split("test")
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    return torch.stack([images[index] for index in first[2 : 2 + count]])
