"""What runs a model in another way than eager: graphs, compilers and other runtimes.

Every one takes a model, an example batch and an empty directory, and gives what runs it, for any
number of images.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitfold.exporting.targets.openvino import core

Model = Callable[[Tensor], Tensor]
Runtime = Callable[[nn.Module, Tensor, Path], Model]


def program(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """What `torch.export` makes of a model, for any number of images."""
    dynamic = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (x,), dynamic_shapes=dynamic)


def exported(model: nn.Module, x: Tensor, directory: Path) -> Model:
    return program(model, x).module()


def ahead_of_time(model: nn.Module, x: Tensor, directory: Path) -> Model:
    if shutil.which("c++") is None:
        pytest.skip("it takes a compiler")
    package = str(directory / "model.pt2")
    torch._inductor.aoti_compile_and_package(program(model, x), package_path=package)
    return torch._inductor.aoti_load_package(package)


def compiled(model: nn.Module, x: Tensor, directory: Path) -> Model:
    """One graph, as eager computes it."""
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def inductor(model: nn.Module, x: Tensor, directory: Path) -> Model:
    return torch.compile(model, fullgraph=True)


def onnx_file(graph: torch.export.ExportedProgram, directory: Path) -> Path:
    """A program, written for other runtimes."""
    pytest.importorskip("onnxscript")
    written = torch.onnx.export(graph, dynamo=True, verbose=False, optimize=False)
    assert written is not None
    written.save(directory / "model.onnx")
    return directory / "model.onnx"


def session(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """Runs a file in ONNX Runtime: from its one input to all of its outputs."""
    runtime = pytest.importorskip("onnxruntime")
    loaded = runtime.InferenceSession(path)
    (only,) = loaded.get_inputs()

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in loaded.run(None, {only.name: x.numpy()})]

    return run


def onnx_runtime(model: nn.Module, x: Tensor, directory: Path) -> Model:
    run = session(onnx_file(program(model, x), directory))
    return lambda x: run(x)[0]


def openvino(model: nn.Module, x: Tensor, directory: Path) -> Model:
    pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    path = onnx_file(program(model, x), directory)
    served: Any = core().compile_model(str(path), "CPU", options)
    return lambda x: torch.from_numpy(served(x.numpy())[0].copy())
