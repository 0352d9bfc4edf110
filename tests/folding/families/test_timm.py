"""Every family of timm: what is folded does everything that it did before, and computes what its
twin computes over all tokens."""

import contextlib
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support.compare import check_nothing_to_reduce, check_twin, near, outputs, same
from support.models import CELLS, KINDS, images, kind, maps, registered, scatter
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor

import vitfold
from vitfold.folding.blocks.proxy import run
from vitfold.folding.families import find
from vitfold.folding.flops import count, dry_count

every_kind = pytest.mark.parametrize("name", KINDS)


# What folding computes.


@pytest.mark.parametrize("name", [*KINDS])
def test_every_kind_folds_and_unfolds(name: str) -> None:
    model = kind(name)
    check_nothing_to_reduce(model, images(model))


@every_kind
@pytest.mark.parametrize("method", [vitfold.ToMe(r=[6, 4]), vitfold.LGTM(r=6, skip=0, window=3)])
def test_merging_is_what_the_twin_computes(name: str, method: Any) -> None:
    model = kind(name)
    check_twin(model, images(model), method)


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_vit3",
        "vit_dwee_patch16_reg1_gap_256",
        "vit_base_patch16_xp_224",
        "vit_dpwee_patch16_reg1_gap_256",
        "beit_base_patch16_224-shared",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_sapiens2",
        "vit_relpos_base_patch16_cls_224",
        "vit_srelpos_small_patch16_224",
        "naflexvit_base_patch16_map",
    ],
)
def test_attention_that_is_not_fused(name: str) -> None:
    x = images(fused := kind(name))
    timm.layers.set_fused_attn(False)
    try:
        model = kind(name)
    finally:
        timm.layers.set_fused_attn(True)
    check_nothing_to_reduce(model, x)
    check_twin(model, x, vitfold.ToMe(r=5))
    method = vitfold.ToMe(r=5)
    near(outputs(vitfold.fold(model, method), x), outputs(vitfold.fold(fused, method), x))


@pytest.mark.parametrize("cue", ["k", "q", "v"])
@every_kind
def test_cues_are_what_attention_attends_with(name: str, cue: str) -> None:
    model = kind(name)
    family = find(model)
    [attention, *_] = family.attentions(family.blocks[0])
    x = torch.randn(2, model.num_prefix_tokens + CELLS**2, model.embed_dim)
    visits: list[Tensor] = []
    with torch.no_grad(), attended() as calls:
        plain = attention(x)
        shown = run(attention, "forward", dict(family.capture(attention, cue, visits.append)), x)
    assert torch.equal(plain, shown)
    expected = [call["qkv".index(cue)].sum(dim=1) for call in calls[: len(calls) // 2]]
    near([F.normalize(visits[0], dim=-1)], [F.normalize(sum(expected), dim=-1)])


@contextlib.contextmanager
def attended() -> Iterator[list[tuple[Tensor, ...]]]:
    """The arguments of every call of fused attention."""
    calls, attend = list[tuple[Tensor, ...]](), F.scaled_dot_product_attention

    def record(*qkv: Tensor, **rest: Any) -> Tensor:
        calls.append(qkv)
        return attend(*qkv, **rest)

    F.scaled_dot_product_attention = record
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = attend


@pytest.mark.parametrize("cue", ["q", "v", "x_pre", "x_attn", "random"])
@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "vit_small_patch16_18x2_224",
        "vit_base_patch16_xp_224",
        "beit_base_patch16_224",
        "eva02_base_patch14_224",
        "vit_base_patch16_sapiens2",
        "vit_relpos_small_patch16_rpn_224",
    ],
)
def test_every_cue_merges(name: str, cue: str) -> None:
    model = kind(name)
    check_twin(model, images(model), vitfold.ToMe(r=5, cue=cue))


POOLS = ["token", "avg", "max", "avgmax", "map", "prr"]


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_merging_identical_tokens_changes_nothing(pool: str, inclusive: bool) -> None:
    model = registered(
        "test_vit", global_pool=pool, pool_include_prefix=inclusive, pos_embed="none"
    )
    x = images(model)
    x[..., 64:] = 0.0  # a column of five patches, and two of a row
    x[:, :, 64:, 16:48] = 0.0
    with torch.no_grad():
        dense = model(x)
        folded = vitfold.fold(model, vitfold.ToMe(r=[3]))(x)
    near([folded], [dense])


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_leaves_out_what_was_dropped(pool: str) -> None:
    """With attention that does not mix tokens, the others are as if the dropped never were."""
    model = registered("test_vit", global_pool=pool, fc_norm=False)
    for block in model.blocks:
        block.attn.proj.weight.data.zero_()
    x = images(model)
    vitfold.fold(model, vitfold.Drop(r=6, cue="x_pre"))
    with torch.no_grad():
        folded, dense = model(x), model.forward_features(x)
    stages = maps(model, x)
    vitfold.unfold(model)
    with torch.no_grad():
        features = model.forward_features(x)
        kept = torch.stack([f[k] for f, k in zip(features, stages[-1].keep, strict=True)])
        near([folded], [model.forward_head(kept)])
        if pool in ("avg", "max", "avgmax"):
            near([model.forward_head(dense)], [model.forward_head(kept)])


# The dense contract.


@every_kind
@pytest.mark.parametrize("method", [vitfold.ToMe(r=4), vitfold.Drop(r=4)])
def test_shapes_stay_dense(name: str, method: Any) -> None:
    model = kind(name)
    x = images(model)
    before = outputs(model, x)
    vitfold.fold(model, method)
    assert [t.shape for t in outputs(model, x)] == [t.shape for t in before]


@pytest.mark.parametrize("name", ["test_vit", "vit_base_patch16_dinov3_qkvb", "test_vit_relpos"])
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_stay_dense(name: str, norm: bool, output_fmt: str, stop_early: bool) -> None:
    model = kind(name, depth=3)
    options = {"indices": [1], "norm": norm, "output_fmt": output_fmt, "stop_early": stop_early}
    options |= {"return_prefix_tokens": model.num_prefix_tokens > 0, "intermediates_only": True}
    x = images(model)
    dense = model.forward_intermediates(x, **options)
    folded = vitfold.fold(model, vitfold.ToMe(r=4)).forward_intermediates(x, **options)
    assert shapes(folded) == shapes(dense)


def shapes(result: Any) -> Any:
    return result.shape if isinstance(result, Tensor) else [shapes(part) for part in result]


def test_intermediates_show_where_every_token_went() -> None:
    model = vitfold.fold(kind("test_vit"), vitfold.ToMe(r=5))
    x = images(model)
    stages = maps(model, x)
    features, inner = model.forward_intermediates(x, output_fmt="NLC", norm=True)
    near([inner[-1]], [features[:, 1:]])
    for stage, shown in zip(stages[1:], inner, strict=True):
        for slots, tokens in zip(stage.slot[:, 1:], shown, strict=True):
            assert len(tokens.unique(dim=0)) == stage.slots - 1
            assert all(
                torch.equal(
                    tokens[slots == s], tokens[slots == s][:1].expand_as(tokens[slots == s])
                )
                for s in slots.unique()
            )


def test_features_only() -> None:
    options = {"img_size": 80, "depth": 3, "features_only": True, "out_indices": (0, 2)}
    model = scatter(timm.create_model("test_vit", **options))
    x = torch.randn(2, 3, 80, 80)
    dense = model(x)
    vitfold.fold(model, vitfold.ToMe(r=5))
    assert shapes(model(x)) == shapes(dense)
    vitfold.fold(model, vitfold.ToMe(r=0))
    same(model(x), dense)


@pytest.mark.parametrize("where", ["block", "attention"])
def test_hooks_see_what_they_saw(where: str) -> None:
    model = kind("test_vit", depth=3)
    block = model.blocks[1]
    module = block if where == "block" else block.attn
    visits: list[Tensor] = []
    module.register_forward_hook(lambda _, args, out: visits.append(out))
    x = images(model)
    model(x)
    vitfold.fold(model, vitfold.ToMe(r=0))(x)
    assert torch.equal(*visits)
    vitfold.fold(model, vitfold.ToMe(r=4))(x)
    tokens = visits[0].shape[1]
    assert visits[2].shape[1] == (tokens if where == "block" else tokens - 4)


def test_hooks_on_all_blocks_see_dense_tokens() -> None:
    model = registered("vit_tiny_patch16_224", depth=3).double()
    x = images(model, 2).double()
    visits: list[Tensor] = []
    model.blocks.register_forward_pre_hook(lambda _, inputs: visits.append(inputs[0]))
    handle = model.blocks.register_forward_hook(lambda _, inputs, out: visits.append(out))
    dense = model(x)
    for method in (vitfold.ToMe(r=0), vitfold.ToMe(r=4), vitfold.LTMP(merge_threshold=0.3)):
        visits.clear()
        vitfold.fold(model, method)
        logits = model(x)
        assert [part.shape for part in visits] == [(2, 26, 192)] * 2
        assert torch.equal(logits, dense) == (method == vitfold.ToMe(r=0))
        assert torch.equal(model.norm(visits[1]), model.forward_features(x))
        handle.remove()
        model.blocks._forward_pre_hooks.clear()
        near([model(x)], [logits], 1e-9)
        model.blocks.register_forward_pre_hook(lambda _, inputs: visits.append(inputs[0]))
        handle = model.blocks.register_forward_hook(lambda _, inputs, out: visits.append(out))


# Sizes of images.


@pytest.mark.parametrize("name", ["test_vit2", "vit_base_patch16_dinov3_qkvb"])
@pytest.mark.parametrize("size", [(64, 96), (48, 48), (80, 80)])
def test_dynamic_image_sizes(name: str, size: tuple[int, int]) -> None:
    model = kind(name, dynamic_img_size=True)
    x = torch.randn(2, 3, *size)
    check_nothing_to_reduce(model, x)
    for method in (vitfold.ToMe(r=3), vitfold.LGTM(r=4, skip=0)):
        check_twin(model, x, method)


def test_padded_image_sizes() -> None:
    model = kind("test_vit2", dynamic_img_size=True, dynamic_img_pad=True)
    x = torch.randn(2, 3, 70, 57)
    check_nothing_to_reduce(model, x)
    check_twin(model, x, vitfold.LGTM(r=4, skip=0))


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224", "test_vit_relpos"])
def test_images_that_are_not_square(name: str) -> None:
    stride = 14 if "14" in name else 16
    model = kind(name, img_size=(4 * stride, 7 * stride))
    x = images(model)
    assert x.shape[-2:] == (4 * stride, 7 * stride)
    check_nothing_to_reduce(model, x)
    for method in (vitfold.ToMe(r=3), vitfold.LGTM(r=4, skip=0)):
        check_twin(model, x, method)


def test_the_size_of_a_model_that_was_not_registered() -> None:
    model = NaFlexVit(NaFlexVitCfg(embed_dim=32, depth=2, num_heads=2))
    assert find(model).size == (3, 256, 256)
    vitfold.fold(model, "tome", r=8)


# Precision, training, gradients.

FAMILIES = [
    "test_vit3",
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch16_rpn_224",
    "vit_small_patch16_18x2_224",
    "vit_base_patch16_xp_224",
    "vit_dwee_patch16_reg1_gap_256",
    "beit_base_patch16_224-shared",
    "eva02_base_patch14_224",
    "eva02_enormous_patch14_clip_224",
    "vit_base_patch16_rope_mixed_ape_224",
    "vit_base_patch16_dinov3_qkvb",
    "vit_relpos_base_patch16_cls_224",
    "naflexvit_base_patch16_map",
    "naflexvit_base_patch16_gap-axial",
]
"""One for every code path; the others differ in their layers alone."""

some = pytest.mark.parametrize("name", FAMILIES)


@some
def test_a_batch_gives_each_image_what_it_gets_alone(name: str) -> None:
    model = vitfold.fold(kind(name).double(), vitfold.ToMe(r=5))
    x = images(model, batch=3)
    with torch.no_grad():
        alone = torch.cat([model(image) for image in x.split(1)])
        near([model(x), model(x.flip(0)).flip(0)], [alone, alone], 1e-10)


@some
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    model = kind(name)
    x = images(model)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        dense = model(x)
        assert torch.equal(vitfold.fold(model, vitfold.ToMe(r=0))(x), dense)
        folded = vitfold.fold(model, vitfold.ToMe(r=5, cue="x_pre"))(x)
    with torch.no_grad():
        precise = model(x)
    assert folded.dtype == dense.dtype
    assert (folded - precise).abs().max() < 0.1 * precise.abs().max()


@some
def test_half_precision(name: str) -> None:
    model = kind(name).bfloat16()
    x = images(model)
    with torch.no_grad():
        dense = model(x)
        assert torch.equal(vitfold.fold(model, vitfold.ToMe(r=0))(x), dense)
        folded = vitfold.fold(model, vitfold.ToMe(r=5))(x)
    assert folded.dtype == torch.bfloat16
    assert folded.isfinite().all()


DROPS = {"drop_path_rate": 0.5, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_rate": 0.2}


@some
def test_training_draws_the_same_numbers(name: str) -> None:
    model = kind(name, **DROPS).train()
    x = images(model)
    torch.manual_seed(0)
    dense = model(x)
    vitfold.fold(model, vitfold.ToMe(r=0))
    torch.manual_seed(0)
    assert torch.equal(model(x), dense)
    assert vitfold.fold(model, vitfold.ToMe(r=5))(x).isfinite().all()


@pytest.mark.parametrize(
    "name", ["test_vit", "eva02_tiny_patch14_224", "vit_base_patch16_rope_mixed_ape_224"]
)
def test_patch_dropout(name: str) -> None:
    model = kind(name, patch_drop_rate=0.4).train()
    x = images(model)
    torch.manual_seed(0)
    dense = model(x)
    vitfold.fold(model, vitfold.ToMe(r=0))
    torch.manual_seed(0)
    assert torch.equal(model(x), dense)
    assert vitfold.fold(model, vitfold.ToMe(r=5))(x).isfinite().all()


def test_distilled_training_hands_out_two_heads() -> None:
    model = kind("deit_tiny_distilled_patch16_224").train()
    model.set_distilled_training(True)
    first, second = vitfold.fold(model, vitfold.ToMe(r=4))(images(model))
    assert first.shape == second.shape == (2, 1000)


@some
def test_gradients_are_the_slope_of_what_is_computed(name: str) -> None:
    model = vitfold.fold(kind(name).double(), vitfold.ToMe(r=5))
    x = images(model).requires_grad_()
    towards, step = torch.randn_like(x), 1e-6
    [gradient] = torch.autograd.grad(loss(model, x), x)
    with torch.no_grad():
        slope = (loss(model, x + step * towards) - loss(model, x - step * towards)) / (2 * step)
    assert torch.isclose((gradient * towards).sum(), slope, rtol=1e-5, atol=1e-8)


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).sin().mean()


@some
@pytest.mark.parametrize("method", [vitfold.ToMe(r=5), vitfold.Drop(r=4)])
def test_checkpointed_gradients_are_the_same(name: str, method: Any) -> None:
    model = vitfold.fold(kind(name, depth=3).double(), method).train()
    x = images(model)
    torch.manual_seed(0)
    plain = gradients(model, x)
    model.set_grad_checkpointing(True)
    torch.manual_seed(0)
    recomputed = gradients(model, x)
    assert len(plain) == len(recomputed)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def gradients(model: Any, x: Tensor) -> list[Tensor]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    result = torch.autograd.grad(loss(model, x), weights, allow_unused=True)
    return [gradient for gradient in result if gradient is not None]


# Putting on and taking off.


@some
def test_folds_replace_each_other(name: str) -> None:
    model, fresh = kind(name), kind(name)
    x = images(model)
    for method in (vitfold.ToMe(r=2), vitfold.LGTM(r=4), vitfold.Drop(r=3)):
        vitfold.fold(model, method)
    same(outputs(model, x), outputs(vitfold.fold(fresh, vitfold.Drop(r=3)), x))
    vitfold.unfold(vitfold.unfold(model))
    vitfold.unfold(fresh)
    same(outputs(model, x), outputs(fresh, x))


@some
def test_copies_are_folds_of_their_own(name: str) -> None:
    model = vitfold.fold(kind(name), vitfold.ToMe(r=4))
    x = images(model)
    expected = outputs(model, x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    vitfold.unfold(model)
    for other in copies:
        same(outputs(other, x), expected)
        vitfold.unfold(other)
        same(outputs(other, x), outputs(model, x))


@every_kind
def test_flops_are_counted_without_running(name: str) -> None:
    model = vitfold.fold(kind(name), vitfold.ToMe(r=4))
    example = find(model).example()
    assert dry_count(model, example) == count(lambda: model(**example))
