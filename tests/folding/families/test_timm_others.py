"""What timm has of isotropic transformers besides its plain ones: CaiT, and the encoders of
language models, whose projectors read a whole grid."""

from typing import Any

import pytest
import timm
import torch
from support.compare import check_nothing_to_reduce, check_twin, near, outputs, same
from support.models import maps, scatter
from support.rest import rest
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn

import vitfold
from vitfold.errors import MethodError, UnsupportedModel
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.families import find
from vitfold.folding.flops import count, dry_count
from vitfold.methods import Base

CAIT = {"embed_dim": 32, "num_heads": 4, "img_size": 80, "init_values": 0.5}
QWEN3 = {"embed_dim": 32, "num_heads": 4, "img_size": 96, "pos_embed_grid_size": 5}
DEEPSEEK = {"embed_dim": 32, "num_heads": 4, "img_size": 70, "patch_size": 14}
GEMMA4 = {"embed_dim": 32, "num_heads": 4, "head_dim": 8, "intermediate_size": 48}

KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "cait": ("cait_xxs24_224", CAIT, 80),
    "cait-avg": ("cait_xxs24_224", CAIT | {"global_pool": "avg"}, 80),
    "cait-none": ("cait_xxs24_224", CAIT | {"global_pool": ""}, 80),
    "qwen3": ("qwen3_vit_88m", QWEN3, 96),
    "qwen3-merge": ("qwen3_vit_88m_merge", QWEN3 | {"out_features": 24}, 96),
    "qwen3-enc": ("qwen3_vit_88m_enc", QWEN3 | {"out_features": 24}, 96),
    "qwen3-enc-avg": ("qwen3_vit_88m_enc", QWEN3 | {"global_pool": "avg"}, 96),
    "deepseek": ("deepseek_vit_412m", DEEPSEEK, 70),
    "deepseek-align": ("deepseek_vit_412m_align", DEEPSEEK | {"out_features": 24}, 70),
    "deepseek-enc": ("deepseek_vit_412m_enc", DEEPSEEK | {"out_features": 24}, 70),
    "gemma4": ("gemma4_vit_167m", GEMMA4, 96),
    "gemma4-groups": ("gemma4_vit_167m", GEMMA4 | {"num_kv_heads": 2}, 96),
    "gemma4-enc": ("gemma4_vit_570m_enc", GEMMA4, 96),
    "gemma4-enc-avg": ("gemma4_vit_570m_enc", GEMMA4 | {"global_pool": "avg"}, 96),
}
"""A registered name, options that make it small, and the side of its images."""

ENCODERS = [name for name in KINDS if not name.startswith("cait")]
ONE_EACH = ["cait", "cait-avg", "qwen3-enc", "deepseek-align", "gemma4-enc"]

every_kind = pytest.mark.parametrize("name", KINDS)
one_each = pytest.mark.parametrize("name", ONE_EACH)


def kind(name: str, depth: int = 2, **options: Any) -> Any:
    """A small model of a kind."""
    registered, size, _ = KINDS[name]
    if registered.startswith("gemma4"):
        options = {"position_embedding_size": 64} | options
    return scatter(timm.create_model(registered, **(size | {"depth": depth} | options)))


def images(name: str, batch: int = 2) -> Tensor:
    side = KINDS[name][2]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@every_kind
def test_every_kind_folds_and_unfolds(name: str) -> None:
    check_nothing_to_reduce(kind(name), images(name))


@every_kind
@pytest.mark.parametrize(
    "method", [vitfold.ToMe(r=[6, 4]), vitfold.LGTM(r=6, skip=0, window=3), vitfold.Ward(r=5)]
)
def test_merging_is_what_the_twin_computes(name: str, method: Any) -> None:
    check_twin(kind(name), images(name), method)


@one_each
@pytest.mark.parametrize("cue", ["q", "v", "x_pre", "x_attn", "random"])
def test_every_cue_merges(name: str, cue: str) -> None:
    check_twin(kind(name), images(name), vitfold.ToMe(r=5, cue=cue))


@every_kind
@pytest.mark.parametrize(
    "method", [vitfold.Drop(r=4), vitfold.ToMeAround(r=4), vitfold.ToMe(r=4, proportional=False)]
)
def test_shapes_stay_dense(name: str, method: Base) -> None:
    model, x = kind(name, depth=3), images(name)
    before = outputs(model, x)
    vitfold.fold(model, method)
    after = outputs(model, x)
    assert [t.shape for t in after] == [t.shape for t in before]
    assert not torch.allclose(after[0], before[0], rtol=1e-3, atol=1e-4)


@one_each
def test_features_only(name: str) -> None:
    registered, size, _ = KINDS[name]
    options = {"depth": 3, "features_only": True, "out_indices": (0, 2)}
    model = scatter(timm.create_model(registered, **(size | options)))
    x = images(name)
    with torch.no_grad():
        dense = model(x)
        folded = vitfold.fold(model, vitfold.ToMe(r=5))(x)
        assert [t.shape for t in folded] == [t.shape for t in dense]
        assert not torch.allclose(folded[1], dense[1], rtol=1e-3, atol=1e-4)
        same(vitfold.fold(model, vitfold.ToMe(r=0))(x), dense)


@one_each
def test_a_batch_gives_each_image_what_it_gets_alone(name: str) -> None:
    model = vitfold.fold(kind(name).double(), vitfold.ToMe(r=5))
    x = images(name, batch=3).double()
    with torch.no_grad():
        alone = torch.cat([model(image) for image in x.split(1)])
        near([model(x)], [alone], 1e-10)


@one_each
def test_every_weight_of_a_block_has_a_gradient(name: str) -> None:
    model = vitfold.fold(kind(name), vitfold.ToMe(r=5))
    model(images(name)).abs().sum().backward()
    for block in find(model).blocks:
        assert all(w.grad is not None and w.grad.isfinite().all() for w in block.parameters())


@pytest.mark.parametrize("name", ["cait", "cait-avg", "qwen3-enc", "gemma4"])
def test_gradients_are_the_slope_of_what_is_computed(name: str) -> None:
    model = vitfold.fold(kind(name).double(), vitfold.ToMe(r=5))
    x = images(name).double().requires_grad_()
    towards, step = torch.randn_like(x), 1e-6
    [gradient] = torch.autograd.grad(model(x).square().sum(), x)
    with torch.no_grad():
        ends = [model(x + sign * step * towards).square().sum() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((gradient * towards).sum(), slope, rtol=1e-5, atol=1e-5)


@one_each
def test_activation_checkpointing_computes_the_same(name: str) -> None:
    model, x = vitfold.fold(kind(name), vitfold.ToMe(r=5)).train(), images(name)
    plain = model(x).square().sum()
    weight = next(find(model).blocks[0].parameters())
    [before] = torch.autograd.grad(plain, weight)
    model.set_grad_checkpointing()
    [after] = torch.autograd.grad(model(x).square().sum(), weight)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("name", ["cait", "gemma4", *rest("qwen3", "deepseek-enc")])
def test_a_graph_computes_the_same(name: str) -> None:
    model, x = vitfold.fold(kind(name), vitfold.ToMe(r=5)), images(name)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        near([compiled(x)], [model(x)])


@one_each
def test_flops_are_counted_without_running(name: str) -> None:
    model, x = kind(name), images(name, batch=1)
    dense = dry_count(model, {"x": x})
    vitfold.fold(model, vitfold.ToMe(r=6))
    assert dry_count(model, {"x": x}) == count(lambda: model(x)) < dense
    vitfold.fold(model, vitfold.ToMe(flops=0.8))
    with torch.no_grad():
        assert model(x).isfinite().all()


# CaiT.


class Talking(nn.Module):
    """A trunk of one attention, so that what is compared is that alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TalkingHeadAttn(16, num_heads=4, qkv_bias=True)


def talking_heads(attention: TalkingHeadAttn, x: Tensor) -> Tensor:
    """Its attention in plain words, over `x[n, C]`, every token once."""
    q, k, v = (attention.qkv(x).view(len(x), 3, 4, 4).permute(1, 2, 0, 3)[i] for i in range(3))
    logits = torch.einsum("hqd,hkd->hqk", q, k) / 2
    mixed = torch.einsum("gh,hqk->gqk", attention.proj_l.weight, logits)
    mixed = mixed + attention.proj_l.bias[:, None, None]
    weights = mixed.exp() / mixed.exp().sum(dim=-1, keepdim=True)
    mixed = torch.einsum("gh,hqk->gqk", attention.proj_w.weight, weights)
    mixed = mixed + attention.proj_w.bias[:, None, None]
    out: Tensor = attention.proj(torch.einsum("hqk,hkd->qhd", mixed, v).flatten(1))
    return out


@torch.no_grad()
def test_a_token_of_size_s_talks_like_s_tokens() -> None:
    """Attention over tokens of sizes 3, 1 and 2 is that over six tokens, in double precision."""
    model: Any = scatter(Talking()).double()
    tokens, sizes = torch.randn(3, 16, dtype=torch.float64), torch.tensor([3, 1, 2])
    family = find(kind("cait"))
    state = _state(tokens[None], sizes[None].double())
    attend = vitfold.folding.blocks.attention.Attend(state, {}, True, None)
    folded = BlockKind(family, lambda block, x, attend: attend(block.attn, x), None).attend(
        model, tokens[None], attend
    )
    expected = talking_heads(model.attn, tokens.repeat_interleave(sizes, dim=0))
    first = torch.tensor([0, 3, 4])
    torch.testing.assert_close(folded[0], expected[first], rtol=1e-12, atol=1e-12)


def _state(x: Tensor, size: Tensor) -> Any:
    from vitfold.tokens.dense import Dense

    places = torch.arange(x.shape[1]).expand(x.shape[0], -1)
    return Dense(x.shape[1], 0, None, x.shape[0], x.device, x.dtype, size=size, origin=places)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_heads_leave_out_what_was_dropped(pool: str) -> None:
    """With attention that does not mix tokens, the others are as if the dropped never were."""
    model, x = kind("cait", global_pool=pool), images("cait")
    for block in model.blocks:
        block.attn.proj.weight.data.zero_()
    vitfold.fold(model, vitfold.Drop(r=6))
    with torch.no_grad():
        folded, dense = model(x), model.forward_features(x)
    keep = maps(model, x)[-1].keep
    vitfold.unfold(model)

    def pick(_: Any, __: Any, out: Tensor) -> Tensor:
        return torch.stack([tokens[k] for tokens, k in zip(out, keep, strict=True)])

    model.blocks[-1].register_forward_hook(pick)
    with torch.no_grad():
        alone = model.forward_features(x)
        near([folded], [model.forward_head(alone)])
        near([dense[:, 1:].mean(1), dense[:, 0]], [alone[:, 1:].mean(1), alone[:, 0]])


def test_hooks_on_the_blocks_of_cait_see_dense_tokens() -> None:
    model, x = kind("cait"), images("cait")
    with torch.no_grad():
        reduced = vitfold.fold(model, vitfold.ToMe(r=5))(x)
        shapes: list[Any] = []
        model.blocks.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
        near([model(x)], [reduced])
    assert shapes == [(2, 25, 32)]


def test_what_cait_refuses() -> None:
    model, x = kind("cait"), images("cait")
    with pytest.raises(MethodError, match="class token"):
        vitfold.fold(model, vitfold.EViT(r=3))
    vitfold.fold(model, vitfold.LTMP(merge_threshold=0.5))
    with pytest.raises(UnsupportedModel, match="TalkingHeadAttn does not attend by torch's"):
        model(x)
    vitfold.unfold(model)
    model.blocks_token_only[0].attn = nn.Identity()
    with pytest.raises(UnsupportedModel, match="class token attends in an unknown way"):
        vitfold.fold(model, vitfold.ToMe(r=3))


# The encoders.


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    "method", [vitfold.LTMP(merge_threshold=0.1), vitfold.MergeDrop(r=3, drop=3)], ids=str
)
def test_attention_of_our_own(name: str, method: Base) -> None:
    model, x = kind(name).double(), images(name, batch=3).double()
    before = outputs(model, x)
    vitfold.fold(model, method)
    after = outputs(model, x)
    assert [t.shape for t in after] == [t.shape for t in before]
    assert not torch.allclose(after[0], before[0], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        near([after[0]], [torch.cat([model(image) for image in x.split(1)])], 1e-9)


@pytest.mark.parametrize("name", ["qwen3-enc-avg", "deepseek", "gemma4-enc-avg"])
def test_averages_leave_out_what_was_dropped(name: str) -> None:
    model, x = kind(name), images(name)
    for block in find(model).blocks:
        out = block.attn.proj if hasattr(block.attn, "proj") else block.attn.o_proj.linear
        out.weight.data.zero_()
    vitfold.fold(model, vitfold.Drop(r=6))
    with torch.no_grad():
        folded = model(x)
    keep = maps(model, x)[-1].keep
    trunk = find(vitfold.unfold(model)).trunk
    with torch.no_grad():
        dense = trunk.forward_features(x).flatten(1, -2)
        kept = torch.stack([tokens[k] for tokens, k in zip(dense, keep, strict=True)]).mean(dim=1)
        near([folded], [model.head(model.norm(kept)) if trunk is not model else kept])


@pytest.mark.parametrize("given", ["dict", "arguments"])
def test_patches_of_several_grids_for_gemma(given: str) -> None:
    """Padded patches weigh nothing: each image is what it is alone."""
    model = kind("gemma4-enc-avg").double()
    lengths, generator = ((4, 3), (3, 3)), torch.Generator().manual_seed(2)
    patches = torch.rand(2, 12, 16 * 16 * 3, generator=generator, dtype=torch.float64)
    places = torch.full((2, 12, 2), -1)
    for image, (rows, columns) in enumerate(lengths):
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        places[image, : len(grid)] = grid

    def run(patches: Tensor, places: Tensor) -> Tensor:
        valid = (places != -1).any(dim=-1)
        if given == "arguments":
            return model(patches, places)  # type: ignore[no-any-return]
        inputs = {"patches": patches, "patch_coord": places, "patch_valid": valid}
        return model(inputs)  # type: ignore[no-any-return]

    with torch.no_grad():
        dense = run(patches, places)
        assert torch.equal(run(patches, places), dense)
        for method in (vitfold.ToMe(r=0), vitfold.ToMe(r=3), vitfold.LTMP(merge_threshold=0.1)):
            vitfold.fold(model, method)
            together = run(patches, places)
            assert torch.allclose(together, dense, rtol=1e-3) == (method == vitfold.ToMe(r=0))
            alone = run(patches[1:, :9], places[1:, :9])
            near([together[1:]], [alone], 1e-10)


def test_images_that_are_not_square() -> None:
    for name, size in (("qwen3", (64, 96)), ("deepseek", (42, 84)), ("gemma4", (64, 80))):
        model, x = kind(name), torch.randn(2, 3, *size)
        check_nothing_to_reduce(model, x)
        check_twin(model, x, vitfold.LGTM(r=4, skip=0))


def test_a_classifier_knows_its_checkpoint() -> None:
    assert find(kind("gemma4")).size == (3, 768, 768)
    assert find(kind("qwen3")).size == (3, 96, 96)
    assert set(find(kind("deepseek")).preprocessing()) == {"mean", "std"}
