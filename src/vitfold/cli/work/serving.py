"""Models in the runtime that a command is to measure."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from vitfold.cli import show
from vitfold.cli.images import batches_of, photographs
from vitfold.data import AnySource, Source
from vitfold.errors import VitfoldError
from vitfold.exporting.runtime import Runtime
from vitfold.exporting.serve import CALIBRATION
from vitfold.tools.baselines import DENSE, EAGER, TEXTBOOK

BATCH = 16


def calibrated(
    runtime: Runtime, model: nn.Module, source: AnySource, limit: int | None, workers: int
) -> Runtime:
    """The runtime with images for the ranges of eight bits, evenly spaced, where it takes any."""
    if not runtime.int8:
        return runtime
    count = min(limit or CALIBRATION, CALIBRATION)
    if isinstance(source, Source):
        batches = photographs(model, source, count, BATCH, workers)
    else:
        batches = (images for images, _ in batches_of(model, source, count, BATCH, workers))
    return replace(runtime, images=torch.cat(list(batches)))


def all_served(models: Mapping[str, nn.Module], runtime: Runtime) -> dict[str, nn.Module]:
    """What the runtime makes of models to compare, by name, and in another than eager torch the
    dense one there. Textbook ToMe is left out where the runtime does not take it."""
    served: dict[str, nn.Module] = {}
    with show.bar(_doing(runtime), len(models)) as progress:
        for name in reversed([*models]):  # the folded one first, which may be refused
            try:
                served[name] = runtime.serve(models[name])
            except VitfoldError as error:
                if name != TEXTBOOK:
                    raise
                show.note(f"{name} is left out: {error}")
            progress()
    beside = {} if runtime.eager else {EAGER: models[DENSE]}
    return {name: served[name] for name in models if name in served} | beside


def answering(model: nn.Module, runtime: Runtime) -> nn.Module:
    """The model as it answers in the runtime, with a bar while that is prepared."""
    with show.bar(_doing(runtime), 1) as progress:
        served = runtime.answering(model)
        progress()
    return served


def _doing(runtime: Runtime) -> str:
    return f"preparing for {runtime}"
