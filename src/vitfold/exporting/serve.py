"""A model as a runtime runs it, in the place of the model: for whatever calls models."""

import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitfold.errors import DataError, UnsupportedModel, nearest
from vitfold.exporting.graph import Named, Outputs, examples, graph_of, output_names
from vitfold.exporting.targets import TARGETS, Runner, Target, refusing
from vitfold.exporting.targets.base import no_eight_bits
from vitfold.exporting.verify import batchwise

RUNTIMES = {
    "eager": None,
    "compile": None,
    "aoti": "aoti",
    "onnxruntime": "onnx",
    "openvino": "openvino",
}
"""Runtimes by name, and the target that is written for each."""


class Served(nn.Module):
    """What a runtime makes of a model: images in, the model's one output or its outputs by name.

    run: the runtime.
    model: the model that it was made of, which knows what outputs mean.
    batch_size: the number of images that it takes; None: any.
    """

    def __init__(self, run: Runner, model: Any, batch_size: int | None = None) -> None:
        super().__init__()
        self.run, self.batch_size = run, batch_size
        for name in ("num_classes", "classes", "window", "config"):
            if hasattr(model, name):
                self.__dict__[name] = getattr(model, name)

    def forward(self, *images: Tensor, **named: Tensor) -> Any:
        """What the model gives for `[B, C, H, W]`, whatever the model calls them."""
        (pixels,) = (*images, *named.values())
        outputs = self._outputs(pixels.contiguous())
        if hasattr(self, "config"):
            return outputs
        return next(iter(outputs.values())) if len(outputs) == 1 else list(outputs.values())

    def _outputs(self, pixels: Tensor) -> Outputs:
        if self.batch_size is not None:
            return batchwise(self.run, pixels, self.batch_size)
        with torch.no_grad():
            return self.run(pixels)


def shown(run: nn.Module, model: nn.Module) -> Served:
    """What torch runs, seen by its outputs alone, which are all that other runtimes show.

    run: the model, or what was compiled of it.
    """
    return Served(Named(run, output_names(model, examples(model, 1))), model)


def serve(
    model: nn.Module,
    runtime: str,
    *,
    batch_size: int | None = None,
    int8: bool = False,
    images: Tensor | None = None,
    threads: int | None = None,
) -> nn.Module:
    """A model as a runtime on this machine runs it.

    runtime: eager, compile, aoti, onnxruntime or openvino.
    batch_size: the number of images that it takes; None: any.
    int8: in eight bits.
    images: `[N, C, H, W]` that the ranges of eight bits are taken from; by default random ones,
        which do where speed is all that is asked.
    """
    kind = check_runtime(runtime, int8)
    if kind is None:
        return model if runtime == "eager" else compiled(model)
    graph = graph_of(model, batch_size)
    with tempfile.TemporaryDirectory() as work, refusing(kind):
        place = Path(work) / "model"
        place.mkdir()
        kind.write(graph, place)
        if int8:
            place = quantized(kind, place, graph.example if images is None else images, batch_size)
        run = kind.open(place, graph.names, threads)
        run(graph.example.cpu())
    return Served(run, model, batch_size)


def compiled(model: nn.Module) -> nn.Module:
    """By `torch.compile`, with programs of its own: models of one class share theirs otherwise, and
    from the ninth on they run as they are."""
    known = inspect.signature(torch.compile).parameters
    own: dict[str, Any] = {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
    return cast("nn.Module", torch.compile(model, **own))


def check_runtime(runtime: str, int8: bool = False) -> Target | None:
    """The target of a runtime, None of torch's own ways; refused where it is not there."""
    if runtime not in RUNTIMES:
        raise UnsupportedModel(f"unknown runtime {runtime!r}{nearest(runtime, RUNTIMES)}")
    name = RUNTIMES[runtime]
    if name is not None:
        TARGETS[name].check(int8, f"runtime {runtime!r}")
        return TARGETS[name]
    if int8:
        raise no_eight_bits(f"runtime {runtime!r}")
    return None


CALIBRATION = 128
"""How many images ranges are taken from, for eight bits."""


def quantized(kind: Target, place: Path, images: Tensor, batch_size: int | None) -> Path:
    """The directory beside that of a program, with the program in eight bits."""
    small = place.with_name(f"{place.name} {INT8}")
    small.mkdir()
    few = images[:CALIBRATION].cpu()
    kind.quantize(place, small, _whole(few, batch_size) if batch_size else few.split(1))
    return small


INT8 = "INT8"


def _whole(images: Tensor, size: int) -> Sequence[Tensor]:
    """Batches of just that size."""
    batches = [batch for batch in images.split(size) if len(batch) == size]
    if not batches:
        raise DataError(f"{len(images)} images are fewer than a batch of {size}: give more")
    return batches
