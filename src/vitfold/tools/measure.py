"""Costs of a model on this machine: floating point operations, images per second, memory."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vitfold.errors import DataError
from vitfold.folding.families import find
from vitfold.folding.flops import check_counted, count, dry_count
from vitfold.folding.inputs import Inputs, call, check, images_in, lacks_text
from vitfold.tokens.modes import evaluating

Progress = Callable[[], None]


@dataclass(frozen=True)
class Throughput:
    """Images per second: the median over the repeats, and the quartiles around it."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, images: int, seconds: Sequence[float]) -> "Throughput":
        """From the seconds that each repeat took."""
        low, median, high = quartiles([images / s for s in seconds])
        return cls(median, low, high, len(seconds))

    def __str__(self) -> str:
        return f"{self.median:.1f} images/s ({self.low:.1f} to {self.high:.1f})"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first, the median and the third; of one value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, method="inclusive")
    return low, median, high


def check_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Refuse to measure a model on a part of what it reads, or on what is no input."""
    check(inputs)
    if lacks_text(model, inputs):
        raise DataError(
            f"{type(model).__name__} reads text too: give all of its inputs by name, or measure "
            "its vision model"
        )


def random_inputs(model: nn.Module, batch: int) -> dict[str, Any]:
    """Noise as inputs for the trunk of a model, by name, in the shapes that it takes."""
    example = find(model).example(batch)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in example.items()}


def batch_of(inputs: Inputs) -> int:
    """How many images these inputs hold."""
    return int(images_in(inputs).shape[0])


def flops(model: nn.Module, images: Inputs) -> int:
    """The floating point operations of one call in evaluation, the method's own work included.

    Two per multiply-add: what papers and timm call the GFLOPs of a model, which count one, are half
    of this.
    """
    check_inputs(model, images)
    check_counted(model)
    with evaluating(model):
        if isinstance(images, Mapping) and any(weight.is_meta for weight in model.parameters()):
            return dry_count(model, images)
        return count(lambda: call(model, images))


def throughput(
    model: nn.Module, images: Inputs, *, repeats: int = 10, warmup: int = 2
) -> Throughput:
    """Images per second of the model as it is, in inference."""
    return compare({"model": model}, images, repeats=repeats, warmup=warmup)["model"]


def compare(
    models: Mapping[str, nn.Module],
    images: Inputs,
    *,
    repeats: int = 10,
    warmup: int = 2,
    progress: Progress = lambda: None,
) -> dict[str, Throughput]:
    """Images per second of several models, measured in turn so that drift of the machine hits all
    alike."""
    seconds = interleave(
        {name: timed(model, images) for name, model in models.items()}, repeats, warmup, progress
    )
    return {name: Throughput.of(batch_of(images), times) for name, times in seconds.items()}


def interleave(
    timed: Mapping[str, Callable[[], float]], repeats: int, warmup: int, progress: Progress
) -> dict[str, list[float]]:
    """The times of every candidate: a round of all of them at a time, after the warm-up, each in
    another order, as some run slower after certain others."""
    for name, value, least in ("repeats", repeats, 1), ("warmup", warmup, 0):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"{name}={value!r}: expected a whole number of at least {least}")
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(warmup + repeats):
        for name in Random(turn).sample([*timed], len(timed)):
            elapsed = timed[name]()
            progress()
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def timed(model: nn.Module, images: Inputs) -> Callable[[], float]:
    """Runs the model once, in inference, and returns the seconds that it took."""
    check_inputs(model, images)

    device = images_in(images).device

    def run() -> float:
        with torch.inference_mode(), evaluating(model):
            start = now(device)
            call(model, images)
            return now(device) - start

    return run


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has finished its work."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type == device.type:
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def peak_memory(model: nn.Module, images: Inputs) -> int:
    """Bytes that one call needs at most, beyond what is there before it (weights, images)."""
    check_inputs(model, images)
    device = images_in(images).device
    with torch.inference_mode(), evaluating(model):
        if device.type == "cuda":
            return _cuda_peak(model, images, device)
        return _cpu_peak(model, images)


def _cuda_peak(model: nn.Module, images: Inputs, device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(model, images)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(model: nn.Module, images: Inputs) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports on standard error otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call(model, images)
    results = profiler.profiler.kineto_results
    changes = [e for e in results.events() if e.name() == "[memory]"]
    peak = now = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return peak
