"""Images in which tokens are alike, through folded models in every runtime, against eager.

Models without absolute positions cannot tell equal patches apart: what merges is decided by ties.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import dino3, eva, vit
from torch import Tensor, nn

import vitfold
from vitfold.methods import Method
from vitfold.tokens.cues import CUES

Model = Callable[[Tensor], Tensor]
SIDE = 28


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def alike() -> Tensor:
    """`[4, 3, SIDE, SIDE]`: constant, half black, tiled, and with a white margin."""
    flat = torch.tensor([0.3, -0.7, 1.1]).double().view(3, 1, 1).expand(3, SIDE, SIDE)
    black, margin = flat.clone(), torch.ones(3, SIDE, SIDE, dtype=torch.float64)
    black[:, :, SIDE // 2 :] = -1
    margin[:, 8:20] = noise(3, 12, SIDE)
    return torch.stack([flat, black, noise(3, 8, 8).repeat(1, 4, 4)[:, :SIDE, :SIDE], margin])


def siglip() -> nn.Module:
    """Without a class token: pooled by attention, or EViT would have something to go by."""
    return vit(class_token=False, global_pool="map", pos_embed="none")


def nowhere() -> nn.Module:
    """Without any positions."""
    return vit(pos_embed="none")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "nowhere": nowhere,
    "dino3": dino3,
    "eva": eva,
    "siglip": siglip,
}
METHODS: list[Method] = [
    vitfold.ToMe(r=5),
    vitfold.DFE(r=5),
    vitfold.LGTM(r=5, skip=0),
    vitfold.Ward(r=5),
    vitfold.MergeDrop(r=3, drop=3),
    *(vitfold.Drop(r=5, cue=cue) for cue in CUES),
    vitfold.EViT(r=6, blocks=(1, 2)),
    vitfold.DynamicViT(r=6, blocks=(1, 2)),
]


def program(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (x,), dynamic_shapes=dynamic)


def exported(model: nn.Module, x: Tensor, directory: Path) -> Model:
    return program(model, x).module()


def ahead_of_time(model: nn.Module, x: Tensor, directory: Path) -> Model:
    package = str(directory / "model.pt2")
    torch._inductor.aoti_compile_and_package(program(model, x), package_path=package)
    return torch._inductor.aoti_load_package(package)


def compiled(model: nn.Module, x: Tensor, directory: Path) -> Model:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def inductor(model: nn.Module, x: Tensor, directory: Path) -> Model:
    return torch.compile(model, fullgraph=True)


def onnx(model: nn.Module, x: Tensor, directory: Path) -> str:
    pytest.importorskip("onnxscript")
    made = torch.onnx.export(program(model, x), (x,), dynamo=True, verbose=False)
    assert made is not None
    made.save(directory / "model.onnx")
    return str(directory / "model.onnx")


def onnx_runtime(model: nn.Module, x: Tensor, directory: Path) -> Model:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx(model, x, directory))
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(model: nn.Module, x: Tensor, directory: Path) -> Model:
    library = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    served = library.Core().compile_model(onnx(model, x, directory), "CPU", options)
    return lambda x: torch.from_numpy(served(x.numpy())[0].copy())


RUNTIMES: list[Any] = [exported, compiled, onnx_runtime, openvino, ahead_of_time, inductor]
SINGLE = (onnx_runtime, openvino)
"""These compute in single precision."""
DEFAULT = {
    ("dino3", 0, exported),
    ("nowhere", 4, exported),
    ("vit", 2, exported),
    ("dino3", 0, onnx_runtime),
    ("dino3", 0, openvino),
}
"""What runs by default: model, method by its number, runtime."""


def cases() -> Iterator[Any]:
    for name, (number, method), runtime in itertools.product(MODELS, enumerate(METHODS), RUNTIMES):
        if not (name == "siglip" and isinstance(method, vitfold.EViT)):
            marks = [] if (name, number, runtime) in DEFAULT else [pytest.mark.exhaustive]
            yield pytest.param(name, method, runtime, marks=marks)


def label(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("name", "method", "runtime"), list(cases()), ids=label)
@pytest.mark.filterwarnings("ignore")
def test_alike_tokens_are_treated_alike_everywhere(
    name: str, method: Method, runtime: Callable[[nn.Module, Tensor, Path], Model], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if runtime in SINGLE else torch.float64
    model, x = vitfold.fold(MODELS[name](), method).to(dtype).eval(), alike().to(dtype)
    with torch.no_grad():
        expected, found = model(x), runtime(model, x[:2], tmp_path)(x)
    torch.compiler.reset()
    close = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
