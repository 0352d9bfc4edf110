"""Images in which tokens are alike, through folded models in every runtime, against eager.

Models without absolute positions cannot tell equal patches apart: what merges is decided by ties.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import matrices
from support.rest import rest
from support.runtimes import (
    Runtime,
    ahead_of_time,
    compiled,
    exported,
    inductor,
    onnx_runtime,
    openvino,
)
from support.small import dino3, eva, vit
from torch import Tensor, nn

import vitfold
from vitfold.methods import Method
from vitfold.tokens.cues import CUES

SIDE = 28
DEPTH = 2


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
    """Without a class token, by which EViT and DiffRate go: pooled by attention."""
    return vit(depth=DEPTH, class_token=False, global_pool="map", pos_embed="none")


def nowhere(depth: int = DEPTH) -> nn.Module:
    """Without any positions."""
    return vit(depth=depth, pos_embed="none")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": functools.partial(vit, depth=DEPTH),
    "nowhere": nowhere,
    "dino3": functools.partial(dino3, depth=DEPTH),
    "eva": functools.partial(eva, depth=DEPTH),
    "siglip": siglip,
}
METHODS: dict[str, Method] = {
    "tome": vitfold.ToMe(r=5),
    "dfe": vitfold.DFE(r=5, skip=1),
    "lgtm": vitfold.LGTM(r=5, skip=0),
    "lgtm-2d": vitfold.LGTM(r=5, skip=0, location="2d"),
    "ward": vitfold.Ward(r=5),
    "mergedrop": vitfold.MergeDrop(r=3, drop=3),
    "pitome": vitfold.PiToMe(r=5),
    "mctf": vitfold.MCTF(r=5),
    "diffrate": vitfold.DiffRate(r=6),
    **{f"drop-{cue}": vitfold.Drop(r=5, cue=cue) for cue in CUES},
    "evit": vitfold.EViT(r=6, blocks=(0, 1)),
    "dynamicvit": vitfold.DynamicViT(r=6, blocks=(0, 1)),
    "prunemerge": matrices.method(blocks=(0, 1)),
    "tome-around": vitfold.ToMeAround(r=5),
}
RUNTIMES: list[Runtime] = [exported, compiled, onnx_runtime, openvino, ahead_of_time, inductor]
SINGLE = (onnx_runtime, openvino)
"""These compute in single precision."""
DEFAULT = {
    ("dino3", "lgtm", exported),
    ("dino3", "tome", compiled),
    ("nowhere", "tome", onnx_runtime),
    ("nowhere", "tome", openvino),
}
SHALLOW = (("shallow", "lgtm", inductor),)
"""What runs by default: model, method, runtime. What takes a compiler, in one block alone."""


def cases() -> Iterator[Any]:
    for case in itertools.product(MODELS, METHODS, RUNTIMES):
        name, method, _ = case
        if not (name == "siglip" and method in ("evit", "diffrate")):
            yield from [case] if case in DEFAULT else rest(case)
    yield from SHALLOW


def label(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("name", "method", "runtime"), list(cases()), ids=label)
@pytest.mark.filterwarnings("ignore")
def test_alike_tokens_are_treated_alike_everywhere(
    name: str, method: str, runtime: Runtime, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if runtime in SINGLE else torch.float64
    dense = nowhere(depth=1) if name == "shallow" else MODELS[name]()
    model = vitfold.fold(dense, METHODS[method]).to(dtype).eval()
    x = alike().to(dtype)
    with torch.no_grad():
        expected, result = model(x), runtime(model, x[:2], tmp_path)(x)
    torch.compiler.reset()
    close = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(result, expected, rtol=0, atol=close)
