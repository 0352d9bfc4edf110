"""OpenVINO's intermediate representation, read from ONNX."""

import contextlib
import functools
import importlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfold.exporting.graph import INPUT, Graph, Outputs, quiet
from vitfold.exporting.pictures import Preparation
from vitfold.exporting.targets import onnx
from vitfold.exporting.targets.base import Runner, Target
from vitfold.exporting.targets.openvino_pictures import behind_preparation, preparation_alone

FILE = "model.xml"


class OpenVino(Target):
    """`model.xml` and `model.bin`. The way leads over ONNX, whose operators OpenVINO reads alike
    for every method; its own reader of torch's programs lacks some that methods need."""

    name = "openvino"
    runtime = "OpenVINO"
    packages = ("openvino", "onnx", "onnxscript")
    extra = "openvino"
    quantizes = True
    quantizers = ("nncf",)
    preprocesses = True

    def write(self, graph: Graph, directory: Path) -> None:
        """The model in single precision."""
        library = importlib.import_module("openvino")
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / onnx.FILE
            onnx.write(graph, path, lean=False)
            model = library.convert_model(path)
            library.save_model(model, directory / FILE, compress_to_fp16=False)

    def open(self, directory: Path, names: Sequence[str], threads: int | None = None) -> Runner:
        """The model, compiled for this CPU."""
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        }
        compiled = core().compile_model(directory / FILE, "CPU", options)

        def run(images: Tensor) -> Outputs:
            results = compiled({INPUT: images.numpy()})
            return {name: torch.from_numpy(results[name].copy()) for name in names}

        return run

    def quantize(self, source: Path, directory: Path, images: Sequence[Tensor]) -> None:
        """By NNCF after training, in its form for transformers; products without weights, such as
        those that match and merge tokens, stay as they are."""
        library, nncf = (importlib.import_module(name) for name in ("openvino", "nncf"))
        model = core().read_model(source / FILE)
        batches = [{INPUT: batch.numpy()} for batch in images]
        nncf.set_log_level(logging.ERROR)
        with quiet(), contextlib.redirect_stdout(io.StringIO()):  # its bars
            small = nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=list(_weightless(model)), validate=False),
            )
            library.save_model(small, directory / FILE, compress_to_fp16=False)

    def prepend(self, source: Path, directory: Path, preparation: Preparation) -> None:
        """By `openvino.preprocess.PrePostProcessor`."""
        library = importlib.import_module("openvino")
        model = behind_preparation(core().read_model(source / FILE), preparation)
        library.save_model(model, directory / FILE, compress_to_fp16=False)

    def preparing(self, preparation: Preparation) -> Callable[[Tensor], Tensor]:
        """A program without a model behind it."""
        model = preparation_alone(preparation)
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda pictures: torch.from_numpy(compiled([pictures.numpy()])[0].copy())


@functools.cache
def core() -> Any:
    """OpenVINO itself, one for all models, as long as the process lives: each gives the thread that
    first uses it a stack for signals, and where two end in the order in which they began, a stack
    that is gone stays, and the next signal with a handler (a worker of a loader that ends) kills
    the process."""
    return importlib.import_module("openvino").Core()


def _weightless(model: Any) -> Iterator[str]:
    """The products of a model of which neither side is a weight."""
    for operator in model.get_ops():
        if operator.get_type_name() == "MatMul":
            sides = [operator.input_value(side).get_node() for side in (0, 1)]
            if not any(side.get_type_name() == "Constant" for side in sides):
                yield operator.get_friendly_name()


TARGET = OpenVino()
