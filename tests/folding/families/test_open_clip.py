"""open_clip's own vision transformer, whole and inside of CLIP, as the package builds it."""

from typing import Any

import pytest
import torch
from support.compare import near, same, tensors
from support.models import maps, scatter
from support.outside import check, check_dropped, twin_of
from torch import Tensor, nn

import vitfold
from vitfold.errors import UnsupportedModel
from vitfold.folding.families import find

open_clip = pytest.importorskip("open_clip")

from open_clip.transformer import Transformer, VisionTransformer  # noqa: E402

SMALL = {"image_size": 20, "patch_size": 4, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0}

POOLINGS: dict[str, dict[str, Any]] = {
    "token": {},
    "average": {"pool_type": "avg"},
    "norm last": {"pool_type": "avg", "final_ln_after_pool": True},
    "tokens": {"output_tokens": True},
    "average and tokens": {"pool_type": "avg", "output_tokens": True},
    "attention": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 3},
    "attention in parallel": {
        "attentional_pool": "parallel",
        "attn_pooler_heads": 4,
        "output_dim": 32,
    },
    "attention in a row": {"attentional_pool": "cascade", "attn_pooler_heads": 4, "output_dim": 32},
    "none": {"pool_type": "none"},
    "scaled": {"ls_init_value": 0.5},
    "without a first norm": {"no_ln_pre": True},
}

every_pooling = pytest.mark.parametrize("options", POOLINGS.values(), ids=POOLINGS.keys())

in_the_middle = pytest.mark.parametrize("batch_first", [True, False])


def tower(batch_first: bool = True, **options: Any) -> Any:
    model = VisionTransformer(**(SMALL | {"output_dim": 8} | options))
    if not batch_first:
        model.transformer = Transformer(32, 3, 4, 2.0, batch_first=False)
    return scatter(model)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(1))


@every_pooling
@pytest.mark.parametrize("method", [vitfold.ToMe(r=[5, 4]), vitfold.LGTM(r=4, skip=0)], ids=str)
def test_merging_is_what_the_twin_computes(options: dict[str, Any], method: Any) -> None:
    check(tower(**options), images(), method)


@in_the_middle
@pytest.mark.parametrize("cue", ["k", "q", "v", "x_attn", "x_pre"])
def test_sequences_in_front_and_in_the_middle(batch_first: bool, cue: str) -> None:
    check(tower(batch_first), images(), vitfold.ToMe(r=4, cue=cue))


def test_keys_are_those_that_attention_attends_with() -> None:
    model = tower()
    [attention] = find(model).attentions(find(model).blocks[0])
    x, shown = torch.randn(2, 26, 32), list[Tensor]()
    overrides = dict(find(model).capture(attention, "k", shown.append))
    with torch.no_grad():
        ours = overrides["forward"](_with(attention, overrides), x)[0]
        theirs = attention(x, x, x, need_weights=False)[0]
        keys = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    near([ours], [theirs])
    near(shown, [keys[..., 32:64].unflatten(-1, (4, 8)).sum(dim=2)])


def _with(module: nn.Module, overrides: dict[str, Any]) -> Any:
    from vitfold.folding.blocks.proxy import Proxy

    return Proxy(module, **overrides)


@every_pooling
def test_dropping_keeps_the_shapes(options: dict[str, Any]) -> None:
    check_dropped(tower(**options), images())


@pytest.mark.parametrize("name", ["average", "attention", "attention in parallel", "norm last"])
def test_pooling_leaves_out_what_was_dropped(name: str) -> None:
    """With attention that does not mix tokens, the others are as if the dropped never were."""
    model, x = tower(**POOLINGS[name]), images()
    for block in model.transformer.resblocks:
        block.attn.out_proj.weight.data.zero_()
    vitfold.fold(model, vitfold.Drop(r=6, cue="x_pre"))
    with torch.no_grad():
        folded = model(x)
    keep = maps(model, x)[-1].keep
    vitfold.unfold(model)
    handle = model.transformer.register_forward_hook(
        lambda _, args, out: torch.stack([t[k] for t, k in zip(out, keep, strict=True)])
    )
    near([folded], [model(x)])
    handle.remove()


@in_the_middle
def test_intermediates_stay_dense(batch_first: bool) -> None:
    model, x = tower(batch_first), images()
    dense = model.forward_intermediates(x, output_extra_tokens=True)
    vitfold.fold(model, vitfold.ToMe(r=0))
    same(tensors(model.forward_intermediates(x, output_extra_tokens=True)), tensors(dense))
    vitfold.fold(model, vitfold.ToMe(r=4))
    folded = model.forward_intermediates(x, output_extra_tokens=True)
    assert [t.shape for t in flat(folded)] == [t.shape for t in flat(dense)]


def flat(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [t for part in (out.values() if isinstance(out, dict) else out) for t in flat(part)]


@in_the_middle
@pytest.mark.parametrize(
    "method", [vitfold.EViT(r=[0, 4, 4], blocks=(1, 2)), vitfold.LTMP()], ids=str
)
def test_methods_that_see_attention(batch_first: bool, method: Any) -> None:
    """Images that keep their own number of tokens get alone what they get in a batch."""
    model = vitfold.fold(tower(batch_first).double(), method)
    x = images(3).double()
    with torch.no_grad():
        alone = torch.cat([model(image) for image in x.split(1)])
        near([model(x)], [alone], 1e-10)


def test_gradients_recomputed() -> None:
    model = vitfold.fold(tower().double(), vitfold.ToMe(r=4)).train()
    x = images().double()

    def gradients() -> list[Tensor]:
        weights = [w for w in model.parameters() if w.requires_grad]
        return list(torch.autograd.grad(model(x).sin().mean(), weights, allow_unused=True))

    plain = gradients()
    model.set_grad_checkpointing(True)
    again = gradients()
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def test_clip_folds_its_vision_tower() -> None:
    config = {"image_size": 20, "patch_size": 4, "width": 32, "layers": 3, "head_width": 8}
    text = {"vocab_size": 50, "context_length": 8, "width": 32, "heads": 4, "layers": 2}
    model = scatter(open_clip.CLIP(8, vision_cfg=config, text_cfg=text))
    x, words = images(), torch.randint(0, 50, (2, 8))
    with torch.no_grad():
        dense, output = model.encode_image(x), model.encode_text(words)
        vitfold.fold(model, vitfold.ToMe(r=4))
        assert torch.equal(model.encode_text(words), output)
        assert model.encode_image(x).shape == dense.shape
        assert not torch.allclose(model.encode_image(x), dense, rtol=1e-3)
        assert torch.equal(vitfold.unfold(model).encode_image(x), dense)


def test_flops_are_solved() -> None:
    model = vitfold.fold(tower(), vitfold.ToMe(flops=0.8))
    assert vitfold.folded(model).schedule != (0, 0, 0)  # type: ignore[union-attr]


def test_compiles_in_one_graph() -> None:
    model = vitfold.fold(tower(), vitfold.ToMe(r=4))
    x = images()
    with torch.no_grad():
        near([torch.compile(model, backend="eager", fullgraph=True)(x)], [model(x)])


def test_blocks_of_another_kind_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"unknown kind, open_clip.*CustomResidual"):
        vitfold.fold(tower(qk_norm=True), "tome", r=2)


def test_its_images_are_normalized_as_it_says() -> None:
    model = open_clip.create_model("ViT-B-32", pretrained=None, device="meta").visual
    stated = find(model).preprocessing()
    assert stated.keys() == {"mean", "std", "crop_pct", "crop_mode", "interpolation"}
    assert (stated["crop_pct"], stated["crop_mode"]) == (1.0, "center")


def test_the_twin_is_another_model() -> None:
    model, x = tower(), images()
    vitfold.fold(model, vitfold.ToMe(r=4))
    stages = maps(model, x)
    vitfold.unfold(model)
    with torch.no_grad(), twin_of(model, stages):
        slow = model(x)
    assert not torch.allclose(slow, model(x), rtol=1e-3)
