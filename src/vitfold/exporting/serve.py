"""A model as a runtime runs it, in the place of the model: for whatever calls models."""

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitfold.errors import UnsupportedModel, nearest
from vitfold.exporting.graph import graph_of
from vitfold.exporting.targets import TARGETS, Runner
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
        for name in ("num_classes", "classes", "config"):
            if hasattr(model, name):
                self.__dict__[name] = getattr(model, name)

    def forward(self, pixel_values: Tensor) -> Any:
        """What the model gives for `[B, C, H, W]`."""
        images = pixel_values.contiguous()
        outputs = batchwise(self.run, images, self.batch_size or len(images))
        if hasattr(self, "config"):
            return outputs
        return next(iter(outputs.values())) if len(outputs) == 1 else list(outputs.values())


def serve(
    model: nn.Module, runtime: str, *, batch_size: int | None = None, threads: int | None = None
) -> nn.Module:
    """A model as a runtime on this machine runs it.

    runtime: eager, compile, aoti, onnxruntime or openvino.
    batch_size: the number of images that it takes; None: any.
    """
    if runtime not in RUNTIMES:
        raise UnsupportedModel(f"unknown runtime {runtime!r}{nearest(runtime, RUNTIMES)}")
    name = RUNTIMES[runtime]
    if name is None:
        return model if runtime == "eager" else cast("nn.Module", torch.compile(model))
    kind = TARGETS[name]
    kind.check(int8=False)
    graph = graph_of(model, batch_size)
    with tempfile.TemporaryDirectory() as place:
        kind.write(graph, Path(place))
        run = kind.open(Path(place), graph.names, threads)
    return Served(run, model, batch_size)
