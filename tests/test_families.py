"""Every model of timm's registry: folded, or refused with its class and a reason. What folds does
everything that it did before, and computes what its twin computes over all tokens."""

import contextlib
import copy
import pickle
import runpy
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from models import CELLS, KINDS, images, kind, maps, registered, scatter, twin
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import vitfold
from vitfold.blocks.kinds import KINDS as BLOCKS
from vitfold.blocks.standin import run
from vitfold.blocks.taps import tap
from vitfold.errors import FoldError, MethodError, ShapeError, UnsupportedModel
from vitfold.families import families, find, trunk_kind
from vitfold.families.table import UNDESCRIBED, Family
from vitfold.flops import count, dry_count

TESTED = "1.0.31"
"""The version of timm whose registry is told apart name by name."""

ISOTROPIC = (
    "beit",
    "deit",
    "eva",
    "naflexvit",
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vitamin",
)

FOLDABLE = [name for module in ISOTROPIC for name in timm.list_models(module=module)]

every_kind = pytest.mark.parametrize("name", KINDS)

torch.set_num_threads(1)


# What is told apart.


class Made(Exception):
    """Stops an entry point of timm where it would build a model."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """The class that an entry point builds, without building it."""

    def stop(cls: type, *_: Any, **__: Any) -> None:
        raise Made(cls)

    def make(name: str) -> type:
        # Of its module alone: hybrids first make another model, which they embed images with.
        module = sys.modules[timm.models.model_entrypoint(name).__module__]
        with monkeypatch.context() as patch, torch.device("meta"):
            patch.setattr(module, "build_model_with_cfg", stop)
            with pytest.raises(Made) as stopped:
                timm.create_model(name)
        return stopped.value.args[0]

    return make


def test_every_registered_name_is_told_apart(made: Callable[[str], type]) -> None:
    told = families()
    verdicts = {name: f for f in (*told.folded, *told.refused) for name in f.names}
    for name in timm.list_models():
        cls, verdict = made(name), verdicts[name]
        assert (trunk_kind(cls) is not None) == (verdict.reason is None), name
        if verdict.reason is None:
            assert verdict.kind == cls.__name__
            assert verdict.module in ISOTROPIC


def of_timm(families: tuple[Family, ...]) -> list[Family]:
    return [family for family in families if family.library == "timm"]


def test_families_list_every_name_once() -> None:
    told = families()
    names = [n for f in of_timm(told.folded + told.refused) for n in f.names]
    assert sorted(names) == sorted(timm.list_models())


@pytest.mark.skipif(timm.__version__ != TESTED, reason=f"counted in timm {TESTED}")
def test_how_many_fold() -> None:
    told = families()
    folded, refused = of_timm(told.folded), of_timm(told.refused)
    assert sum(len(f.names) for f in folded) == len(FOLDABLE) == 306
    assert sum(len(f.names) for f in refused) == 1065
    assert all(f.reason and f.reason != UNDESCRIBED for f in refused)


def test_families_print_as_a_table() -> None:
    told = families()
    text = str(told)
    assert text == repr(told)
    assert "vision_transformer_relpos" in text
    assert "windows" in text
    with pytest.raises(AttributeError):
        told.folded = ()


def test_the_page_is_up_to_date() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs" / "families.md").read_text(encoding="utf-8")
    installed = f"timm {timm.__version__} and transformers {version('transformers')}"
    if installed not in page:
        pytest.skip(f"the page was not written from {installed}")
    written = runpy.run_path(str(root / "scripts" / "write_families.py"))["page"]()
    assert written == page, "run scripts/write_families.py"


REFUSED = {f.module: min(f.names, key=len) for f in of_timm(families().refused) if f.names}


@pytest.mark.parametrize("name", REFUSED.values())
def test_what_is_refused_is_refused_with_class_and_reason(name: str) -> None:
    check_refused(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(timm.list_models()) - set(FOLDABLE)))
def test_every_other_name_is_refused(name: str) -> None:
    check_refused(name)


def check_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedModel) as refusal:
        vitfold.fold(model, "tome", r=1)
    cls = type(model)
    assert f"{cls.__module__}.{cls.__qualname__} cannot be folded: it" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FOLDABLE)
def test_every_isotropic_name_folds(name: str) -> None:
    model = registered(name)
    check_nothing_to_reduce(model, images(model))
    check_twin(model, images(model), vitfold.ToMe(r=CELLS))


# What folding computes.


@pytest.mark.parametrize("name", [*KINDS])
def test_every_kind_folds_and_unfolds(name: str) -> None:
    model = kind(name)
    check_nothing_to_reduce(model, images(model))


def check_nothing_to_reduce(model: Any, x: Tensor) -> None:
    """With r = 0, and again once it is unfolded, a model computes the same to the last bit."""
    keys, attributes = list(model.state_dict()), set(model.__dict__)
    before = outputs(model, x)
    vitfold.fold(model, vitfold.ToMe(r=0))
    assert list(model.state_dict()) == keys
    same(outputs(model, x), before)
    vitfold.unfold(vitfold.fold(model, vitfold.ToMe(r=3)))
    assert set(model.__dict__) == attributes
    assert not any("forward" in module.__dict__ for module in model.modules())
    same(outputs(model, x), before)


@torch.no_grad()
def outputs(model: Any, x: Tensor) -> list[Tensor]:
    """Everything that a model hands out."""
    found = [model(x), model.forward_features(x), *model.forward_intermediates(x)[1]]
    if hasattr(model, "get_intermediate_layers"):
        found += model.get_intermediate_layers(x, n=2, norm=True)
    assert all(tensor.isfinite().all() for tensor in found)
    return found


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def near(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= tolerance * other.abs().max()


@every_kind
@pytest.mark.parametrize("method", [vitfold.ToMe(r=[6, 4]), vitfold.LGTM(r=6, skip=0, window=3)])
def test_merging_is_what_the_twin_computes(name: str, method: Any) -> None:
    model = kind(name)
    check_twin(model, images(model), method)


def check_twin(model: Any, x: Tensor, method: Any, **given: Any) -> None:
    with torch.no_grad():
        dense = model(x, **given)
    vitfold.fold(model, method)
    with torch.no_grad():
        folded = [model(x, **given), model.forward_features(x, **given)]
    stages = maps(model, x, **given)
    vitfold.unfold(model)
    with torch.no_grad(), twin(model, stages):
        slow = [model(x, **given), model.forward_features(x, **given)]
    near(folded, slow)
    assert not torch.allclose(folded[0], dense, rtol=1e-3, atol=1e-4), "nothing was merged"


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
    block = find(model).blocks[0]
    [attention, *_] = BLOCKS[f"{type(block).__module__}.{type(block).__name__}"].attentions(block)
    x = torch.randn(2, model.num_prefix_tokens + CELLS**2, model.embed_dim)
    seen: list[Tensor] = []
    with torch.no_grad(), attended() as calls:
        plain = attention(x)
        shown = run(attention, "forward", tap(attention, cue, seen.append), x)
    assert torch.equal(plain, shown)
    expected = [call["qkv".index(cue)].sum(dim=1) for call in calls[: len(calls) // 2]]
    near([F.normalize(seen[0], dim=-1)], [F.normalize(sum(expected), dim=-1)])


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


def shapes(found: Any) -> Any:
    return found.shape if isinstance(found, Tensor) else [shapes(part) for part in found]


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
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _, args, out: seen.append(out))
    x = images(model)
    model(x)
    vitfold.fold(model, vitfold.ToMe(r=0))(x)
    assert torch.equal(*seen)
    vitfold.fold(model, vitfold.ToMe(r=4))(x)
    tokens = seen[0].shape[1]
    assert seen[2].shape[1] == (tokens if where == "block" else tokens - 4)


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


# Masks, and images with padding.


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"]
)
@pytest.mark.parametrize("kind_of_mask", ["bias", "keys", "bool"])
def test_masks_go_with_the_tokens(name: str, kind_of_mask: str) -> None:
    model = kind(name)
    x = images(model)
    tokens = model.num_prefix_tokens + CELLS**2
    mask = torch.randn(2, 1, tokens, tokens)
    if kind_of_mask == "keys":
        mask = mask[:, :, :1]
    if kind_of_mask == "bool":
        mask = (mask > -1.0) | torch.eye(tokens, dtype=torch.bool)
    check_twin(model, x, vitfold.ToMe(r=4), attn_mask=mask)


def test_causal_attention_is_refused() -> None:
    model = vitfold.fold(kind("test_vit"), vitfold.ToMe(r=2))
    with pytest.raises(UnsupportedModel, match="is_causal"):
        model(images(model), is_causal=True)


def naflex(pool: str, **options: Any) -> Any:
    options = {"global_pool": pool, "class_token": True, "reg_tokens": 2, "depth": 3} | options
    return kind("naflexvit_base_patch16_gap", **options).double()


def patches(height: int, width: int, seed: int) -> dict[str, Tensor]:
    """One image as NaFlex takes it."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    number = height * width
    return {
        "patches": torch.randn(1, number, 768, generator=generator, dtype=torch.float64),
        "patch_coord": torch.stack([rows, columns], -1).view(1, number, 2),
        "patch_valid": torch.ones(1, number, dtype=torch.bool),
    }


def batched(*alone: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several images, padded to the longest; what lies in the padding is not to matter."""
    longest = max(image["patches"].shape[1] for image in alone)

    def padded(name: str, fill: float) -> Tensor:
        rows = [image[name] for image in alone]
        short = [longest - row.shape[1] for row in rows]
        return torch.cat(
            [
                F.pad(row, [*[0, 0] * (row.dim() - 2), 0, n], value=fill)
                for row, n in zip(rows, short, strict=True)
            ]
        )

    return {
        "patches": padded("patches", 3.0),
        "patch_coord": padded("patch_coord", 0),
        "patch_valid": padded("patch_valid", 0),
    }


IMAGES = [patches(4, 6, 0), patches(3, 5, 1), patches(2, 2, 2)]

NAFLEX = {
    "avg": {"global_pool": "avg"},
    "map": {"global_pool": "map"},
    "token": {"global_pool": "token"},
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "with prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "map with prefix": {"global_pool": "map", "pool_include_prefix": True},
    "keys": {"global_pool": "avg", "use_key_only_attn_mask": True},
    "axial": {"global_pool": "avg", "attn_type": "rope", "rope_type": "axial"},
    "mixed": {"global_pool": "avg", "attn_type": "rope", "rope_type": "mixed"},
}


@pytest.mark.parametrize("method", [vitfold.ToMe(r=4), vitfold.Drop(r=3, cue="x_pre")])
@pytest.mark.parametrize("options", NAFLEX.values(), ids=NAFLEX.keys())
def test_padded_images_get_the_result_that_they_get_alone(
    options: dict[str, Any], method: Any
) -> None:
    options = dict(options)
    model = naflex(options.pop("global_pool"), **options)
    dense = model(batched(*IMAGES))
    near([dense], [torch.cat([model(image) for image in IMAGES])], 1e-9)
    vitfold.fold(model, method)
    near([model(batched(*IMAGES))], [torch.cat([model(image) for image in IMAGES])], 1e-9)
    features, truth = (
        model.forward_features(**batched(*IMAGES)),
        model.forward_features(**IMAGES[1]),
    )
    near([features["patches"][1:2, : 3 + 15]], [truth["patches"]], 1e-9)


def test_padding_in_intermediates() -> None:
    model = vitfold.fold(naflex("avg"), vitfold.ToMe(r=4))
    together = model.forward_intermediates(batched(*IMAGES), output_fmt="NLC")[1]
    for place, image in enumerate(IMAGES):
        alone = model.forward_intermediates(image, output_fmt="NLC")[1]
        number = image["patches"].shape[1]
        near([t[place : place + 1, :number] for t in together], alone, 1e-9)


def test_patch_dropout_of_padded_images() -> None:
    model = naflex("avg", patch_drop_rate=0.25, dynamic_img_pad=False).train()
    vitfold.fold(model, vitfold.ToMe(r=3))
    assert model(batched(*IMAGES)).isfinite().all()


@pytest.mark.parametrize("method", [vitfold.ToMe(r=3), vitfold.Drop(r=3), vitfold.LTMP()], ids=str)
def test_an_image_of_padding_alone_is_finite_where_the_dense_one_is(method: Any) -> None:
    model, given = naflex("avg"), batched(*IMAGES)
    given["patch_valid"][1] = False
    assert model(given).isfinite().all()
    vitfold.fold(model, method)
    assert model(given).isfinite().all()
    assert model.forward_features(**given)["patches"][[0, 2]].isfinite().all()


def test_hooks_on_all_blocks_see_dense_tokens() -> None:
    model = registered("vit_tiny_patch16_224", depth=3).double()
    x = images(model, 2).double()
    seen: list[Tensor] = []
    model.blocks.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    handle = model.blocks.register_forward_hook(lambda _, given, out: seen.append(out))
    dense = model(x)
    for method in (vitfold.ToMe(r=0), vitfold.ToMe(r=4), vitfold.LTMP(merge_threshold=0.3)):
        seen.clear()
        vitfold.fold(model, method)
        logits = model(x)
        assert [part.shape for part in seen] == [(2, 26, 192)] * 2
        assert torch.equal(logits, dense) == (method == vitfold.ToMe(r=0))
        assert torch.equal(model.norm(seen[1]), model.forward_features(x))
        handle.remove()
        model.blocks._forward_pre_hooks.clear()
        near([model(x)], [logits], 1e-9)
        model.blocks.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        handle = model.blocks.register_forward_hook(lambda _, given, out: seen.append(out))


def test_a_model_that_leaves_out_blocks_is_refused() -> None:
    class Skips(VisionTransformer):
        def forward_features(self, x: Tensor, **_: Any) -> Tensor:
            x = self._pos_embed(self.patch_embed(x))
            for index in (0, 2):
                x = self.blocks[index](x)
            return self.norm(x)

    model: Any = Skips(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2).eval()
    vitfold.fold(model, vitfold.ToMe(r=1))
    with pytest.raises(FoldError, match="block 2 was called before block 1"):
        model(torch.randn(1, 3, 32, 32))


def test_a_shallow_copy_is_told_from_a_copy() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=2), vitfold.ToMe(r=2))
    other = copy.copy(model)
    with pytest.raises(FoldError, match="shallow copy"):
        vitfold.unfold(other)
    vitfold.unfold(model)
    with pytest.raises(FoldError, match="shallow copy"):
        other(images(model, 1))
    assert model(images(model, 1)).isfinite().all()


def test_lgtm_refuses_padded_images() -> None:
    model = vitfold.fold(naflex("avg"), vitfold.LGTM(r=4, skip=0))
    with pytest.raises(MethodError, match="padded"):
        model(batched(*IMAGES))


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
    found = torch.autograd.grad(loss(model, x), weights, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


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
    assert dry_count(lambda: model(**find(model).example())) == count(lambda: model(**example))


# What is found, and what is not.


class Heir(VisionTransformer):
    """Calls on its base for what it does not change."""

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward_features(x, **options) * 2.0

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x[:, 1:].mean(1) + x[:, 0])


class Prompted(VisionTransformer):
    """Adds tokens between its blocks."""

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        for block in self.blocks:
            x = block(torch.cat([x, x[:, :3]], dim=1))
        return self.norm(x)


class Blind(VisionTransformer):
    """Runs other blocks than its own."""

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        x = self._pos_embed(self.patch_embed(x))
        for block in nn.Module.__getattr__(self._module, "blocks"):
            x = block(x)
        return self.norm(x)


def own(cls: type = VisionTransformer, **options: Any) -> Any:
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return scatter(cls(**(settings | options)))


def test_a_subclass_folds() -> None:
    model = own(Heir)
    check_nothing_to_reduce(model, images(model))
    check_twin(model, images(model), vitfold.ToMe(r=4))


def test_a_subclass_that_adds_tokens_is_refused() -> None:
    model = vitfold.fold(own(Prompted), vitfold.ToMe(r=4))
    with pytest.raises(FoldError, match="adds tokens"):
        model(images(model))


def test_a_subclass_that_runs_past_its_blocks_is_refused() -> None:
    model = vitfold.fold(own(Blind), vitfold.ToMe(r=4))
    with pytest.raises(UnsupportedModel, match="does not run its own blocks"):
        model(images(model))


class Mean(VisionTransformer):
    """Reads out in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)[:, 1:].mean(dim=1))


def test_a_forward_of_its_own_reads_dense_features() -> None:
    model = vitfold.fold(own(Mean), vitfold.ToMe(r=4))
    x = images(model)
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), model.head(features[:, 1:].mean(dim=1)))


class Around(nn.Module):
    """Runs the blocks of a trunk itself."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(x))
        for block in self.trunk.blocks:
            x = block(x)
        return x


def test_blocks_that_somebody_else_runs_say_that_they_are_dense() -> None:
    trunk = own()
    model, x = Around(trunk), images(trunk)
    dense = model(x)
    vitfold.fold(model, "tome", r=4)
    with pytest.warns(UserWarning, match="outside of its forward: it runs dense"):
        assert torch.equal(model(x), dense)


def test_unfolding_takes_off_nothing_but_the_fold() -> None:
    def wrapper(x: Tensor, **_: Any) -> Tensor:
        return x

    model = own()
    model.forward_features = wrapper
    with pytest.raises(UnsupportedModel, match="forward_features of a VisionTransformer is replac"):
        vitfold.fold(model, "tome", r=2)
    assert model.__dict__["forward_features"] is wrapper
    model = vitfold.fold(own(), "tome", r=2)
    ours = model.blocks[0].forward
    model.blocks[0].forward = wrapper
    with pytest.raises(FoldError, match="replaced after folding"):
        vitfold.unfold(model)
    del model.blocks[0].forward
    with pytest.raises(FoldError, match="replaced after folding"):
        vitfold.unfold(model)
    model.blocks[0].forward = ours
    assert "_vitfold" not in vars(vitfold.unfold(model))


def test_a_block_that_was_exchanged_is_refused() -> None:
    model = vitfold.fold(own(), "tome", r=2)
    model.blocks[0] = own().blocks[0]
    with pytest.raises(FoldError, match="does not run the blocks that were folded"):
        model(images(model))


def test_images_of_other_channels_are_refused() -> None:
    model = vitfold.fold(own(), "tome", r=2)
    with pytest.raises(ShapeError, match=r"images of 1x\d+x\d+ do not fit VisionTransformer"):
        model(images(model)[:, :1])


def test_a_size_that_no_model_has_is_refused() -> None:
    with pytest.raises(ShapeError, match="does not take them"):
        vitfold.fold(timm.create_model("test_vit", img_size=50), "tome", flops=0.7)


def test_what_is_no_model_is_refused() -> None:
    for act in (vitfold.unfold, lambda given: vitfold.trace(given, torch.zeros(1))):
        with pytest.raises(UnsupportedModel, match=r"int is not a torch\.nn\.Module"):
            act(3)


class OtherBlock(Block):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + 1.0


class OtherAttention(timm.layers.Attention):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + 1.0


def test_unknown_blocks_and_attention_are_refused() -> None:
    for options, what in (
        ({"block_fn": OtherBlock}, "unknown kind"),
        ({"attn_layer": OtherAttention}, "unknown way"),
    ):
        with pytest.raises(UnsupportedModel, match=what) as refusal:
            vitfold.fold(own(**options), "tome", r=2)
        assert "VisionTransformer cannot be folded" in str(refusal.value)
        assert __name__ in str(refusal.value)


def test_replaced_forwards_are_refused() -> None:
    for module in (lambda m: m, lambda m: m.blocks[1], lambda m: m.blocks[1].attn):
        model = own()
        target = module(model)
        target.forward = target.forward
        with pytest.raises(UnsupportedModel, match="is replaced"):
            vitfold.fold(model, "tome", r=2)


def test_shared_blocks_are_refused() -> None:
    model = own()
    model.blocks = nn.Sequential(model.blocks[0], model.blocks[0])
    with pytest.raises(UnsupportedModel, match="more than once"):
        vitfold.fold(model, "tome", r=2)


def test_blocks_that_change_under_a_fold_are_refused() -> None:
    model = vitfold.fold(own(depth=3), "tome", r=2)
    model.prune_intermediate_layers([0])
    with pytest.raises(FoldError, match="unfold it before"):
        model(images(model))


def test_a_model_around_a_trunk_folds() -> None:
    inner = own(global_pool="avg")
    model = nn.Sequential(inner, nn.ReLU())
    x = images(inner)
    dense = model(x)
    vitfold.fold(model, vitfold.ToMe(r=4))
    assert model(x).shape == dense.shape
    assert not torch.equal(model(x), dense)
    assert torch.equal(vitfold.unfold(model)(x), dense)


def test_two_trunks_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="2 foldable parts"):
        vitfold.fold(nn.ModuleList([own(), own()]), "tome", r=2)


def test_the_reason_of_a_part_is_named() -> None:
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(
        UnsupportedModel, match=r"Sequential cannot be folded: of its .*Swin.*window"
    ):
        find(nn.Sequential(swin, nn.ReLU()))
    with pytest.raises(UnsupportedModel, match="no family describes Linear"):
        find(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match=r"not a torch\.nn\.Module"):
        find("vit_base_patch16_224")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UnsupportedModel, match="before wrapping"):
        vitfold.fold(wrap(own()), "tome", r=2)
