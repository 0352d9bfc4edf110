"""A folded model compiles in one graph, exports with a dynamic batch and runs in ONNX Runtime."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import hf, images, inputs, registered
from support.rest import rest
from support.runtimes import (
    Model,
    ahead_of_time,
    compiled,
    exported,
    inductor,
    onnx_file,
    onnx_runtime,
    program,
    session,
)
from torch import Tensor, nn

import vitfold
from vitfold.errors import FoldError
from vitfold.folding.families import find
from vitfold.methods import Method

FAMILIES = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch14_reg4_dinov2",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_mixed_224",
    "vitamin_small_224",
    "beit_base_patch16_224",
    "naflexvit_base_patch16_gap",
    "vit_relpos_small_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_tiny_r_s16_p8_224",
]


def mixing(model: nn.Module) -> vitfold.PruneMerge:
    """Matrices for a model and its images, in all of its blocks."""
    result = find(model)
    grid = result.grid({"x": images(model, 1)})
    assert grid is not None
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(result.depth, math.prod(grid), generator=generator).tolist()
    return vitfold.PruneMerge(0.4, 0.2, tuple(range(result.depth)), grid=grid, scores=scores)


Way = Method | Callable[[nn.Module], vitfold.PruneMerge]
METHODS: list[Way] = [
    vitfold.ToMe(r=3),
    vitfold.DFE(r=3, skip=1),
    vitfold.LGTM(r=4, skip=0),
    vitfold.Drop(r=3),
    vitfold.Ward(r=3),
    vitfold.MergeDrop(r=2, drop=1),
    mixing,
    vitfold.EViT(r=4, blocks=(0, 1)),
    vitfold.DynamicViT(r=4, blocks=(0, 1)),
]
WITHOUT_CLASS_TOKEN = {
    "naflexvit_base_patch16_gap",
    "vitamin_small_224",
    "vit_base_patch16_siglip_224",
    "vit_relpos_small_patch16_224",
}
"""What EViT refuses."""
EVERY = [
    (family, way)
    for family, way in itertools.product(FAMILIES, METHODS)
    if not (isinstance(way, vitfold.EViT) and family in WITHOUT_CLASS_TOKEN)
]
SOME = [(family, METHODS[i % len(METHODS)]) for i, family in enumerate(FAMILIES)]
"""Every family once, and every method once. By default half of them run in ONNX Runtime, and half
of the others compiled."""


def named(value: object) -> str:
    return getattr(value, "__name__", str(value))


def put_on(model: nn.Module, way: Way) -> nn.Module:
    return vitfold.fold(model, way(model) if callable(way) else way)


def every_pair(default: list[tuple[str, Way]]) -> pytest.MarkDecorator:
    others = rest(*(pair for pair in EVERY if pair not in default))
    return pytest.mark.parametrize(("name", "method"), default + others, ids=named)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


def agrees(model: nn.Module, other: Model) -> None:
    for batch in (1, 7):
        pixels = images(model, batch, seed=batch)
        torch.testing.assert_close(other(pixels), model(pixels), atol=1e-3, rtol=1e-3)


@every_pair(SOME[::4])
def test_compiles_in_one_graph(name: str, method: Way, tmp_path: Path) -> None:
    model = put_on(registered(name), method)
    agrees(model, compiled(model, images(model, 2), tmp_path))


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.exhaustive
def test_inductor_agrees(method: Way, tmp_path: Path) -> None:
    model = put_on(registered("vit_tiny_patch16_224"), method)
    agrees(model, inductor(model, images(model, 2), tmp_path))


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.exhaustive
def test_compiles_ahead_of_time(method: Way, tmp_path: Path) -> None:
    model = put_on(registered("vit_tiny_patch16_224"), method)
    agrees(model, ahead_of_time(model, images(model, 2), tmp_path))


@every_pair([])  # what runs in ONNX Runtime was exported so
def test_exports_with_a_dynamic_batch(name: str, method: Way, tmp_path: Path) -> None:
    model = put_on(registered(name), method)
    agrees(model, exported(model, images(model, 2), tmp_path))


@every_pair(SOME[1::2])
def test_runs_in_onnx_runtime(name: str, method: Way, tmp_path: Path) -> None:
    model = put_on(registered(name), method)
    agrees(model, onnx_runtime(model, images(model, 2), tmp_path))


@pytest.mark.parametrize(
    "method",
    [
        vitfold.ToMe(r=3),
        vitfold.EViT(r=[3]),
        *rest(vitfold.LGTM(r=4, skip=0), vitfold.Drop(r=3), vitfold.DynamicViT(flops=0.8)),
    ],
    ids=str,
)
def test_a_graph_made_of_one_image_holds_for_many(method: Method, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = put_on(registered("vit_tiny_patch16_224"), method)
    one = images(model, 1)
    agrees(model, torch.jit.trace(model, one))  # type: ignore[no-untyped-call]
    graph = torch.onnx.export(
        model, (one,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False
    )
    assert graph is not None
    graph.save(tmp_path / "model.onnx")
    run = session(tmp_path / "model.onnx")
    agrees(model, lambda x: run(x)[0])


def test_the_older_exporter_of_onnx_is_refused(tmp_path: Path) -> None:
    model = put_on(registered("vit_tiny_patch16_224"), vitfold.ToMe(r=3))
    with pytest.raises(FoldError, match="dynamo=True"):
        torch.onnx.export(model, (images(model, 1),), tmp_path / "model.onnx", dynamo=False)


def test_compiled_lgtm_follows_the_size_of_images() -> None:
    model = registered("vit_tiny_patch16_224", dynamic_img_size=True)
    vitfold.fold(model, vitfold.LGTM(r=4, skip=0))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for shape in ((80, 80), (80, 112), (96, 64)):
        x = torch.randn(2, 3, *shape)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-3, rtol=1e-3)


RECOMPUTED = [METHODS[0], METHODS[2], mixing]


@pytest.mark.parametrize(
    "method",
    # The last of all draws in training.
    [*RECOMPUTED, *rest(*(way for way in METHODS[:-1] if way not in RECOMPUTED))],
    ids=named,
)
def test_blocks_are_computed_again_in_one_graph(method: Way) -> None:
    """The states are written in the forward pass alone, which is as it should be."""
    model = put_on(registered("vit_tiny_patch16_224"), method).train()
    x = images(model, 2)

    def gradients(called: Model) -> list[Tensor]:
        with torch.enable_grad():
            loss = called(x).square().sum()
            return list(torch.autograd.grad(loss, weights, materialize_grads=True))

    weights = [weight.requires_grad_() for weight in model.parameters()]
    expected = gradients(model)
    model.set_grad_checkpointing()
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        result = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(result, expected)


def test_equal_similarities_pick_the_earlier_token_in_onnx_too(tmp_path: Path) -> None:
    """A flat image: all patches alike but for their position, which is taken away."""
    model = registered("vit_tiny_patch16_224")
    model.pos_embed.zero_()
    vitfold.fold(model, vitfold.ToMe(r=3))
    run = onnx_runtime(model, images(model, 2), tmp_path)
    flat = torch.ones(1, *images(model, 1).shape[1:])
    torch.testing.assert_close(run(flat), model(flat), atol=1e-3, rtol=1e-3)


HF = [
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "CLIPVisionModelWithProjection",
    "SiglipVisionModel",
    "BeitForImageClassification",
]


def every_hf(default: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [default, *rest(*(n for n in HF if n != default))])


def main_output(output: Any) -> Tensor:
    """Logits or embeddings, by whatever name a model has for them."""
    for name in ("logits", "image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise AssertionError(f"no output of {type(output).__name__} is known")


def hf_agrees(model: nn.Module, other: Callable[..., Any]) -> None:
    for batch in (1, 7):
        arguments = inputs(model, batch, seed=batch)
        theirs, ours = main_output(other(**arguments)), main_output(model(**arguments))
        torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-3)


def hf_exported(model: nn.Module) -> torch.export.ExportedProgram:
    dynamic = {"pixel_values": {0: torch.export.Dim("batch")}}
    return torch.export.export(model, (), inputs(model), dynamic_shapes=dynamic)


@every_hf("DINOv3ViTModel")
def test_hugging_face_compiles_in_one_graph(name: str) -> None:
    pytest.importorskip("transformers")
    model = vitfold.fold(hf(name), vitfold.ToMe(r=3))
    hf_agrees(model, torch.compile(model, fullgraph=True, backend="aot_eager"))


@every_hf("ViTForImageClassification")
def test_hugging_face_exports_and_runs_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = vitfold.fold(hf(name), vitfold.ToMe(r=3))
    graph = hf_exported(model)
    hf_agrees(model, graph.module())
    arguments = inputs(model, 7)
    outputs = session(onnx_file(graph, tmp_path))(arguments["pixel_values"])
    expected = main_output(model(**arguments))
    assert any(
        out.shape == expected.shape and (out - expected).abs().max() < 1e-3 for out in outputs
    )


def test_numbers_of_its_own_for_every_image_do_not_export() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224"), "ltmp")
    with pytest.raises(Exception, match=r"vitfold\.freeze"):
        program(model, images(model))
    program(vitfold.freeze(model, images(model, 3)), images(model))
