"""What others do to a model that is folded: hooks, parts of their own, graphs, shards, integers."""

import copy
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import near
from support.matrices import method as matrices
from support.models import CELLS, hf, images, kind, registered
from support.processes import one_process
from torch import Tensor, nn

import vitfold
from vitfold.errors import FoldError, MethodError, PlanError, ShapeError, UnsupportedModel
from vitfold.folding.families import find
from vitfold.tools.baselines import candidates


def patches(height: int, width: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of such a grid of 16 x 16 pixels, and the same as NaFlex's patches."""
    image = torch.randn(1, 3, 16 * height, 16 * width, generator=torch.manual_seed(seed))
    rows = image.reshape(1, 3, height, 16, width, 16).permute(0, 2, 4, 3, 5, 1)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    taken = torch.ones(1, height * width, dtype=torch.bool)
    flat = rows.reshape(1, height * width, -1)
    return image, {"patches": flat, "patch_coord": places[None], "patch_valid": taken}


def together(*inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}


# Grids


def test_patches_that_say_where_they_come_from_form_a_grid() -> None:
    model = vitfold.fold(kind("naflexvit_base_patch16_gap", depth=4), vitfold.LGTM(r=4, skip=0))
    image, same = patches(2, 8, 0)
    assert torch.equal(model(same), model(image))
    assert vitfold.trace(model, same).grid == (2, 8)


def test_lgtm_refuses_images_of_several_grids() -> None:
    model = kind("naflexvit_base_patch16_gap", depth=4)
    both = together(patches(2, 8, 0)[1], patches(4, 4, 1)[1])
    for method in (vitfold.ToMe(r=4), vitfold.Ward(r=4), vitfold.Drop(r=4)):
        vitfold.fold(model, method)
        alone = [model({name: part[[i]] for name, part in both.items()}) for i in range(2)]
        near([model(both)], [torch.cat(alone)], 1e-4)
    vitfold.fold(model, vitfold.LGTM(r=4, skip=0))
    with pytest.raises(MethodError, match="LGTM cannot take images of several shapes in one call"):
        model(both)


def test_so_of_siglip2() -> None:
    model = hf("Siglip2VisionModel")
    width = 3 * model.config.patch_size**2
    shapes = torch.tensor([[2, 8], [4, 4], [2, 8]])
    inputs = {
        "pixel_values": torch.randn(3, 16, width),
        "pixel_attention_mask": torch.ones(3, 16, dtype=torch.long),
        "spatial_shapes": shapes,
    }
    vitfold.fold(model, vitfold.LGTM(r=2, skip=0))
    with pytest.raises(MethodError, match="images of several shapes"):  # and not of three axes
        model(**inputs)
    alike = {name: part[[0, 2]] for name, part in inputs.items()}
    alone = [model(**{n: part[[i]] for n, part in inputs.items()}).pooler_output for i in (0, 2)]
    near([model(**alike).pooler_output], [torch.cat(alone)], 1e-4)
    with pytest.raises(MethodError, match="padded"):
        model(**(alike | {"pixel_attention_mask": torch.ones(2, 16).tril(3).long()}))


# Parts of a model's own


def mean_of_patches(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x[:, 1:].mean(1)


@pytest.mark.parametrize("name", ["forward_head", "pool"])
@pytest.mark.parametrize("after", [False, True])
def test_a_head_of_an_instance_reads_dense_features(name: str, after: bool) -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    if after:
        vitfold.fold(model, vitfold.ToMe(r=4))
    setattr(model, name, types.MethodType(mean_of_patches, model))
    x = images(model)
    vitfold.fold(model, vitfold.ToMe(r=0))
    assert torch.equal(model(x), vitfold.unfold(model)(x))
    vitfold.fold(model, vitfold.ToMe(r=4))
    near([model(x)], [model.forward_head(model.forward_features(x))], 1e-6)


def test_attention_that_is_replaced_under_a_fold_is_refused() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=3), vitfold.ToMe(r=4))
    x, attention = images(model), model.blocks[1].attn
    attention.forward = types.MethodType(type(attention).forward, attention)
    with pytest.raises(FoldError, match="forward of a Attention was replaced after folding"):
        model(x)
    del attention.forward
    model(x)


def test_hooks_on_gradients_see_what_is_inside() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    visits: list[str] = []
    for name in ("blocks.1.attn", "blocks.1", "blocks"):
        hook = lambda module, into, out, name=name: visits.append(name)  # noqa: E731
        model.get_submodule(name).register_full_backward_hook(hook)
    for r in (0, 4):
        visits.clear()
        vitfold.fold(model, vitfold.ToMe(r=r))(images(model)).sum().backward()
        assert sorted(visits) == ["blocks", "blocks.1", "blocks.1.attn"]


def test_a_hook_before_a_block_sees_dense_tokens() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=3), vitfold.ToMe(r=4))
    x, visits = images(model), list[Any]()
    logits = model(x)
    model.blocks[2].register_forward_pre_hook(lambda _, inputs: visits.append(inputs[0].shape[1]))
    near([model(x)], [logits], 1e-4)
    assert visits == [1 + CELLS**2]


def test_thresholds_of_inference_mode_can_be_trained() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    with torch.inference_mode():
        vitfold.fold(model, vitfold.LTMP(flops=0.7))
    model.train()(images(model)).sum().backward()
    learned = [values for name, values in model.named_parameters() if "vitfold" in name]
    assert learned
    assert all(values.grad is not None for values in learned)


# Graphs, shards and integers


def test_a_compiled_model_is_looked_at_before() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=3), vitfold.ToMe(r=4))
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(FoldError, match=r"look at it before torch\.compile"):
        vitfold.trace(compiled, images(model))
    assert vitfold.trace(model, images(model)).counts


@pytest.mark.parametrize(
    "method", ["tome", "tome-around", "lgtm", "ltmp", "dynamicvit", "avit", "prune-merge"]
)
@pytest.mark.parametrize("mixed", [False, True])
def test_shards_fold(method: str, mixed: bool, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = registered("vit_tiny_patch16_224", depth=3)
    if method == "prune-merge":
        vitfold.fold(model, matrices((CELLS, CELLS), blocks=(1, 2)))
    else:
        vitfold.fold(model, method, flops=0.8)
    x = images(model)
    expected = model(x)
    with one_process(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        options: dict[str, Any] = {"mesh": mesh}
        if mixed:
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for block in model.blocks:
            fully_shard(block, **options)
        fully_shard(model, **options)
        if not mixed:
            near([model(x).detach()], [expected.detach()], 1e-4)
        assert model(x).isfinite().all()
        model.train()(x).float().sum().backward()


def test_integers_are_folded_by_number_and_not_counted(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = torch.ao.quantization.quantize_dynamic(
            registered("vit_tiny_patch16_224", depth=3), {nn.Linear}, dtype=torch.qint8
        )
        x = images(model)
        with pytest.raises(MethodError, match="a quantized Linear is not counted"):
            vitfold.fold(model, "tome", flops=0.8)
        vitfold.fold(model, "tome", r=4)
        assert model(x).isfinite().all()
        with pytest.raises(MethodError, match="a quantized Linear is not counted"):
            vitfold.flops(model, x)
        with pytest.raises(PlanError, match="cannot be read, as in quantized models"):
            vitfold.save(model, tmp_path, backbone=True)
        vitfold.save(model, tmp_path)
        assert (tmp_path / "plan.json").is_file()


def test_what_cannot_be_copied_is_counted_all_the_same() -> None:
    model = registered("vit_tiny_patch16_224", depth=3).bfloat16()
    model.lock = threading.Lock()
    visits: list[Any] = []
    model.blocks[0].register_forward_hook(lambda *inputs: visits.append(inputs[2].device.type))
    vitfold.fold(model, "tome", flops=0.8)
    assert "meta" not in visits


# Mistakes


def test_a_list_of_images_is_refused_by_every_family() -> None:
    model = vitfold.fold(hf("ViTModel"), vitfold.ToMe(r=4))
    with pytest.raises(ShapeError, match="images came as a list: stack them"):
        model([torch.zeros(3, 20, 20)])


def test_tome_takes_its_options_in_order() -> None:
    assert vitfold.ToMe(13, "v", 1, False) == vitfold.ToMe(
        r=13, cue="v", skip=1, proportional=False
    )
    assert vitfold.DFE(13, 2) == vitfold.DFE(r=13, skip=2)
    assert vitfold.LGTM(13, 2, 4) == vitfold.LGTM(r=13, skip=2, window=4)


# Beside others


@pytest.mark.parametrize(
    "model",
    [
        lambda: kind("naflexvit_base_patch16_gap"),
        lambda: registered("vit_tiny_patch16_224", features_only=True, out_indices=(0, 1)),
        lambda: hf("Dinov2Backbone", out_features=["stage1", "stage2"]),
        lambda: hf("DINOv3ViTBackbone", out_features=["stage1", "stage2"]),
    ],
)
@pytest.mark.parametrize("method", [vitfold.ToMe(r=3), vitfold.Drop(r=4)], ids=str)
def test_all_candidates_run(model: Any, method: vitfold.Method) -> None:
    ours = vitfold.fold(model(), method)
    x = torch.randn(2, *find(ours).size)
    shapes = [maps(candidate(x)) for candidate in candidates(ours).values()]
    assert len(shapes) >= 3
    assert all(shape == shapes[0] for shape in shapes)


def maps(out: Any) -> list[torch.Size]:
    parts = out if isinstance(out, list) else getattr(out, "feature_maps", [out])
    return [part.shape for part in parts]


@pytest.mark.parametrize(
    "method", [vitfold.ToMe(r=2), vitfold.EViT(r=[0, 2], blocks=(1,))], ids=str
)
def test_hooks_on_all_modules_see_the_attention_that_is_captured(method: Any) -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224"), method)
    modules: list[Any] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: modules.append(module)
    )
    try:
        model(images(model))
    finally:
        handle.remove()
    assert all(block.attn in modules for block in model.blocks)
    assert {block.attn for block in model.blocks} <= set(modules)


def test_a_model_whose_offload_hooks_are_taken_off_folds() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = registered("vit_tiny_patch16_224")
    x = images(model)
    with torch.no_grad():
        expected = vitfold.fold(copy.deepcopy(model), vitfold.ToMe(r=2))(x)
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(UnsupportedModel, match="take them off"):
        vitfold.fold(model, vitfold.ToMe(r=2))
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    vitfold.fold(model, vitfold.ToMe(r=2))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    vitfold.unfold(model)


@pytest.mark.parametrize(
    "method", [vitfold.LTMP(), vitfold.AViT(), vitfold.ToMe(flops=0.6)], ids=str
)
def test_what_needs_weights_refuses_an_offloaded_model(method: Any) -> None:
    accelerate, transformers = map(pytest.importorskip, ("accelerate", "transformers"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).eval()
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(UnsupportedModel, match="are offloaded by accelerate"):
        vitfold.fold(model, method)
