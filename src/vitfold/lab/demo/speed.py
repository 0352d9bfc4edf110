"""A model of real size, dense and folded, in eager torch and in the fastest runtime here."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.exporting.runtime import Runtime, installed
from vitfold.folding.fold import clone, fold
from vitfold.saving.models import create_model
from vitfold.tools.baselines import DENSE
from vitfold.tools.measure import Progress, Throughput, batch_of, compare

MODEL = "deit_small_patch16_224"
METHOD, SHARE = "ward", 0.6
BATCH = 8
ROUNDS, WARMUP = 4, 1

RUNTIMES = ("openvino", "onnxruntime")
"""Runtimes that are faster than eager torch on a CPU, the fastest first."""


@dataclass(frozen=True)
class Row:
    """One model in one runtime.

    low, high: quartiles of the images per second.
    speedup: the time of the dense model in the same runtime over its own.
    eager_speedup: the time of the dense model in eager torch over its own.
    """

    model: str
    runtime: str
    images_per_second: float
    low: float
    high: float
    speedup: float
    eager_speedup: float

    def to_json(self) -> dict[str, Any]:
        """The figures by field name."""
        return asdict(self)


def real_model() -> nn.Module:
    """A model as large as those that people serve, with random weights: times do not depend on
    them."""
    torch.manual_seed(0)
    return create_model(MODEL).eval()


def runtimes() -> list[Runtime]:
    """Eager torch, and the fastest runtime that is installed, where one is."""
    names = ["eager", *installed(torch.device("cpu"), RUNTIMES)][:2]
    return [Runtime(name, batch_size=BATCH) for name in names]


def models(dense: nn.Module) -> dict[str, nn.Module]:
    """The model, and a fold of it, by the names that rows have."""
    return {DENSE: dense, f"{METHOD} {SHARE}": fold(clone(dense), METHOD, flops=SHARE)}


def steps() -> int:
    """How often `rows` calls its progress."""
    return 2 * len(runtimes()) * (1 + WARMUP + ROUNDS)


def rows(dense: nn.Module, images: Tensor, progress: Progress = lambda: None) -> list[Row]:
    """Both models in every runtime on one batch, all timed in turn.

    images: `[B, C, H, W]`, `BATCH` of them.
    """
    served: dict[Key, nn.Module] = {}
    both = models(dense)
    for runtime in runtimes():
        for name, model in both.items():
            served[str(runtime), name] = runtime.serve(model)
            progress()
    rates = _rates(served, images, progress)
    return [_row(key, rates) for key in served]


Key = tuple[str, str]
"""The runtime and the model."""


def _rates(
    served: dict[Key, nn.Module], images: Tensor, progress: Progress
) -> dict[Key, Throughput]:
    assert batch_of(images) == BATCH
    by_text = {" ".join(key): model for key, model in served.items()}
    rates = compare(by_text, images, repeats=ROUNDS, warmup=WARMUP, progress=progress)
    return dict(zip(served, rates.values(), strict=True))


def _row(key: Key, rates: dict[Key, Throughput]) -> Row:
    runtime, name = key
    rate, eager = rates[key], next(iter(rates.values()))
    return Row(
        name,
        runtime,
        rate.median,
        rate.low,
        rate.high,
        rate.median / rates[runtime, DENSE].median,
        rate.median / eager.median,
    )
