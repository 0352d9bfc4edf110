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
from vitfold.validate import validate

SHARES = (0.75, 0.6, 0.5)
BATCH = 64
ROUNDS = 3


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


def folds() -> Iterator[tuple[str, float, nn.Module]]:
    """Every method at every share, on one model after another."""
    dense = create_digits().eval()
    for name in METHODS:
        for share in SHARES:
            yield name, share, fold(clone(dense), create_method(name, {"flops": share}))


def rows() -> Iterator[Row]:
    """The dense model first, then every fold of it."""
    dense = create_digits().eval()
    images, labels = load_split("test")
    yield _row("dense", 1.0, dense, dense, images, labels)
    for name, share, model in folds():
        yield _row(name, share, model, dense, images, labels)


def _row(
    name: str, share: float, model: nn.Module, dense: nn.Module, images: Tensor, labels: Tensor
) -> Row:
    batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    report = validate(model, dense, batches)
    bound = dense if model is dense else free_slicing(model, removed(model))
    rates = compare({DENSE: dense, BOUND: bound, FOLDED: model}, images[:BATCH], repeats=ROUNDS)
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
