"""Hugging Face's vision models, small ones: with their heads, in both implementations of attention,
padded, recomputed, copied. What folds computes what its twin computes over all tokens."""

import contextlib
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.compare import near, same, tensors
from support.hf_models import DEEP
from support.models import CELLS, hf, inputs, maps
from support.twins import beside_twin, outputs
from torch import Tensor, nn

import vitfold
from vitfold.errors import FoldError, UnsupportedModel
from vitfold.folding.families import find
from vitfold.folding.flops import count, dry_count

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

NAMES = [name for names in DEEP.values() for name in names]

TRUNKS = [names[0] for names in DEEP.values()]

BEIT = {
    "own": {},
    "shared": {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
    "both": {"use_shared_relative_position_bias": True},
    "token": {"use_mean_pooling": False, "use_absolute_position_embeddings": True},
}

every_name = pytest.mark.parametrize("name", NAMES)
every_trunk = pytest.mark.parametrize("name", TRUNKS)

STATES = {"output_hidden_states": True}


def check(model: Any, arguments: dict[str, Any], method: Any = None, **options: Any) -> None:
    """Nothing to reduce changes nothing; merging is what the twin computes, in dense shapes."""
    folded, dense = beside_twin(model, arguments, method or vitfold.ToMe(r=[4, 3]), **options)
    assert not torch.allclose(folded[0], dense[0], rtol=1e-3, atol=1e-4), "nothing was merged"


@every_name
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_class_folds(name: str, attention: str) -> None:
    model = hf(name)
    model.set_attn_implementation(attention)
    check(model, inputs(model))


@every_name
@pytest.mark.parametrize(
    "options", [STATES, {"return_dict": False}, STATES | {"return_dict": False}]
)
def test_outputs_keep_their_shapes(name: str, options: dict[str, Any]) -> None:
    model = hf(name)
    check(model, inputs(model), **options)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "BeitForSemanticSegmentation"])
def test_models_say_whether_they_read_patches(name: str) -> None:
    """Out of patches is read what changes with those that leave the last block; the one that is
    left out reads those of earlier blocks."""
    model: Any = hf(name)
    result = find(model)
    last: Any = result.blocks[-1]

    def changed(*args: Any, **kwargs: Any) -> Any:
        out = type(last).forward(last, *args, **kwargs)
        x = out[0] if isinstance(out, tuple) else out
        x = torch.cat([x[:, : result.prefix], x[:, result.prefix :].flip(-1)], dim=1)
        return (x, *out[1:]) if isinstance(out, tuple) else x

    arguments = inputs(model)
    before = read(model, arguments)
    last.forward = changed
    assert result.layout().reads_patches == (not torch.equal(before, read(model, arguments)))


@torch.no_grad()
def read(model: Any, arguments: dict[str, Any]) -> Tensor:
    """What a model says of images: logits, an embedding, or features where there is no more."""
    output = model(**arguments)
    for field in ("logits", "image_embeds", "pooler_output", "reconstruction", "feature_maps"):
        if (result := getattr(output, field, None)) is not None:
            return result[-1] if isinstance(result, tuple) else result  # type: ignore[no-any-return]
    return output.last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", [vitfold.LGTM(r=4, skip=0), vitfold.ToMe(r=4, cue="x_attn")])
@every_trunk
def test_other_methods(name: str, method: Any) -> None:
    model = hf(name)
    check(model, inputs(model), method)


@every_trunk
def test_dropping_keeps_the_shapes(name: str) -> None:
    model = hf(name)
    arguments = inputs(model)
    for options in ({}, STATES, {"return_dict": False}):
        dense = outputs(vitfold.unfold(model), arguments, **options)
        dropped = outputs(vitfold.fold(model, vitfold.Drop(r=4)), arguments, **options)
        assert [t.shape for t in dropped] == [t.shape for t in dense]
        assert all(t.isfinite().all() for t in dropped)


def test_dropping_without_a_pooler() -> None:
    model = vitfold.fold(hf("SiglipVisionModel", vision_use_head=False), vitfold.Drop(r=4))
    arguments = inputs(model)
    [as_tuple] = outputs(model, arguments, return_dict=False)
    assert torch.equal(as_tuple, model(**arguments).last_hidden_state)


@pytest.mark.parametrize(
    "name",
    [
        "BeitForImageClassification",
        "CLIPForImageClassification",
        "Dinov2ForImageClassification",
        "Dinov2WithRegistersModel",
        "SiglipForImageClassification",
        "SiglipVisionModel",
    ],
)
def test_heads_leave_out_what_was_dropped(name: str) -> None:
    """With attention that does not mix tokens, the others are as if the dropped never were."""
    model = hf(name)
    for block in find(model).blocks:
        for attention in (getattr(block, "attention", None), getattr(block, "self_attn", None)):
            for out in ("o_proj", "out_proj"):
                if hasattr(attention, out):
                    getattr(attention, out).weight.data.zero_()
    arguments = inputs(model)
    vitfold.fold(model, vitfold.Drop(r=5))
    folded = model(**arguments)
    keep = maps(model, **arguments)[-1].keep
    vitfold.unfold(model)
    with reading(model, keep):
        alone = model(**arguments)
    key = "logits" if "For" in name else "pooler_output"
    near([folded[key]], [alone[key]])


@contextlib.contextmanager
def reading(model: nn.Module, keep: Tensor) -> Iterator[None]:
    """Makes what follows the last block read the kept tokens alone."""

    def pick(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return torch.stack([tokens[k] for tokens, k in zip(out, keep, strict=True)])

    handle = find(model).blocks[-1].register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("options", BEIT.values(), ids=BEIT.keys())
@pytest.mark.parametrize("name", ["BeitModel", "BeitForImageClassification"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_beit_biases_and_poolings(name: str, options: dict[str, Any], attention: str) -> None:
    model = hf(name, **options)
    model.set_attn_implementation(attention)
    check(model, inputs(model))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DINOv3ViTModel", {"use_gated_mlp": True, "query_bias": False}),
        ("DINOv3ViTModel", {"num_register_tokens": 4}),
        ("Dinov2Model", {"use_swiglu_ffn": True}),
        ("SiglipVisionModel", {"vision_use_head": False}),
        ("Siglip2VisionModel", {"vision_use_head": False}),
        ("Dinov2Backbone", {"out_features": ["stage1", "stage3"], "reshape_hidden_states": False}),
        ("ViTModel", {"image_size": [16, 28]}),
    ],
)
def test_variants(name: str, options: dict[str, Any]) -> None:
    model = hf(name, **options)
    check(model, inputs(model))


@pytest.mark.parametrize(
    "name",
    [
        "ViTModel",
        "DeiTModel",
        "BeitModel",
        "CLIPVisionModel",
        "SiglipVisionModel",
        "Dinov2Model",
        "DINOv3ViTModel",
        "CLIPModel",
    ],
)
@pytest.mark.parametrize("size", [(24, 24), (16, 28)])
def test_other_sizes(name: str, size: tuple[int, int]) -> None:
    model = hf(name)
    arguments = inputs(model)
    arguments["pixel_values"] = torch.randn(2, 3, *size)
    free = name.startswith("D") and "DeiT" not in name
    options = {} if free else {"interpolate_pos_encoding": True}
    check(model, arguments | options)
    vitfold.fold(model, vitfold.LGTM(r=6, skip=0))
    assert all(t.isfinite().all() for t in outputs(model, arguments | options))


def test_heads_of_clip_apart() -> None:
    model = hf("CLIPModel")
    arguments = inputs(model)
    text = {"input_ids": arguments["input_ids"]}
    with torch.no_grad():
        words = model.get_text_features(**text).pooler_output
        dense = model.get_image_features(arguments["pixel_values"]).pooler_output
        vitfold.fold(model, vitfold.ToMe(r=4))
        assert torch.equal(model.get_text_features(**text).pooler_output, words)
        folded = model.get_image_features(arguments["pixel_values"]).pooler_output
    assert folded.shape == dense.shape
    assert not torch.allclose(folded, dense, rtol=1e-3)


# Masks and padding.


@pytest.mark.parametrize(
    "name", ["ViTModel", "DeiTModel", "BeitModel", "Dinov2Model", "Dinov2Backbone"]
)
def test_masked_patches_mix_with_no_others(name: str) -> None:
    model = hf(name)
    # BEiT adds a mask of booleans to its bias, as if it were one of numbers, where it is not eager.
    model.set_attn_implementation("eager" if name == "BeitModel" else "sdpa")
    arguments = inputs(model)
    prefix = find(model).prefix
    mask = torch.ones(2, prefix + CELLS**2, dtype=torch.long)
    mask[0, -7:] = 0
    vitfold.fold(model, vitfold.ToMe(r=4))
    masked = outputs(model, arguments | {"attention_mask": mask})
    other = {"pixel_values": arguments["pixel_values"].clone()}
    other["pixel_values"][0, :, -4:] = 9.0  # the last row of patches
    again = outputs(model, other | {"attention_mask": mask})
    if name == "Dinov2Backbone":  # hands out maps
        masked, again = ([t[:, :, :-2] for t in result] for result in (masked, again))
    else:
        masked, again = ([result[0][:, : prefix + 18]] for result in (masked, again))
    same(masked, again)


def siglip2(height: int, width: int, longest: int, seed: int) -> dict[str, Tensor]:
    """One image as SigLIP 2 takes it; what lies in the padding is not to matter."""
    generator = torch.Generator().manual_seed(seed)
    number = height * width
    pixels = torch.full((1, longest, 48), 3.0)
    pixels[:, :number] = torch.randn(1, number, 48, generator=generator)
    mask = (torch.arange(longest) < number).long()[None]
    shape = torch.tensor([[height, width]])
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shape}


GRIDS = [(4, 6), (3, 5), (2, 3)]


@pytest.mark.parametrize("name", ["Siglip2VisionModel", "Siglip2ForImageClassification"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [vitfold.ToMe(r=3), vitfold.Drop(r=3, cue="x_pre")])
def test_padded_images_get_the_result_that_they_get_alone(
    name: str, attention: str, method: Any
) -> None:
    model = hf(name).double()
    model.set_attn_implementation(attention)
    key = "logits" if "For" in name else "pooler_output"
    padded = [siglip2(*grid, longest=24, seed=i) for i, grid in enumerate(GRIDS)]
    together = {k: torch.cat([image[k] for image in padded]) for k in padded[0]}
    alone = [siglip2(*grid, longest=grid[0] * grid[1], seed=i) for i, grid in enumerate(GRIDS)]
    for fold in (False, True):
        if fold:
            vitfold.fold(model, method)
        with torch.no_grad():
            near([model(**together)[key]], [torch.cat([model(**one)[key] for one in alone])], 1e-6)


# Attention that takes no bias.


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an implementation that is there and takes no bias."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

    monkeypatch.setitem(ATTENTIONS._global_mapping, "flash_test", sdpa_attention_forward)
    monkeypatch.setitem(MASKS._global_mapping, "flash_test", lambda **_: None)
    return "flash_test"


@every_trunk
def test_attention_without_bias_is_refused(name: str, flash: str) -> None:
    model = hf(name)
    arguments = inputs(model)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = flash
    vitfold.fold(model, vitfold.ToMe(r=4))
    with pytest.raises(UnsupportedModel, match="attn_implementation='sdpa'"):
        model(**arguments)
    if name != "BeitModel":  # its positions are a bias too
        for method in (vitfold.ToMe(r=4, proportional=False), vitfold.Drop(r=4)):
            vitfold.fold(model, method)
            assert all(t.isfinite().all() for t in outputs(model, arguments))


def test_attention_that_may_take_no_bias_is_refused() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def deaf(*args: Any, attention_mask: Any = None, **options: Any) -> Any:
        return sdpa_attention_forward(*args[:4], None, **options)

    transformers.AttentionInterface.register("deaf", deaf)
    model = hf("ViTModel")
    model.config._attn_implementation = "deaf"
    vitfold.fold(model, vitfold.ToMe(r=4))
    with pytest.raises(UnsupportedModel, match="deaf may take no bias"):
        model(**inputs(model))
    vitfold.fold(model, vitfold.ToMe(r=4, proportional=False))
    assert all(t.isfinite().all() for t in outputs(model, inputs(model)))


def test_flops_are_solved_where_there_are_shapes_alone() -> None:
    for name in ("SiglipVisionModel", "Siglip2VisionModel"):
        model = hf(name)
        schedule = vitfold.folded(vitfold.fold(model, vitfold.ToMe(flops=0.8)))
        vitfold.unfold(model)
        assert vitfold.folded(vitfold.fold(model.to("meta"), vitfold.ToMe(flops=0.8))) == schedule


def test_flops_of_padded_images_are_counted_where_there_are_shapes_alone() -> None:
    model = vitfold.fold(hf("Siglip2VisionModel"), vitfold.ToMe(r=4))
    example = inputs(model)
    counted = vitfold.flops(model, example)
    assert vitfold.flops(model.to("meta"), example) == counted


def test_attention_maps_are_refused() -> None:
    model = vitfold.fold(hf("ViTModel"), vitfold.ToMe(r=4))
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModel, match="output_attentions"):
        model(**inputs(model), output_attentions=True)


# Precision, training, gradients, copies.


@every_trunk
def test_a_batch_gives_each_image_what_it_gets_alone(name: str) -> None:
    model = vitfold.fold(hf(name).double(), vitfold.ToMe(r=4))
    arguments = inputs(model, batch=3)
    arguments["pixel_values"] = arguments["pixel_values"].double()
    together = outputs(model, arguments)
    for image in range(3):
        alone = outputs(model, {k: v[image : image + 1] for k, v in arguments.items()})
        near([t[image : image + 1] for t in together], alone, 1e-10)


@every_trunk
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    model = hf(name)
    arguments = inputs(model)
    with torch.autocast("cpu", dtype):
        dense = outputs(model, arguments)
        same(outputs(vitfold.fold(model, vitfold.ToMe(r=0)), arguments), dense)
        for method in (vitfold.ToMe(r=4, cue="x_pre"), vitfold.Drop(r=4)):
            folded = outputs(vitfold.fold(model, method), arguments)
            assert [t.dtype for t in folded] == [t.dtype for t in dense]
            assert all(t.isfinite().all() for t in folded)


@every_trunk
def test_half_precision(name: str) -> None:
    model = hf(name).bfloat16()
    arguments = inputs(model)
    arguments["pixel_values"] = arguments["pixel_values"].bfloat16()
    dense = outputs(model, arguments)
    same(outputs(vitfold.fold(model, vitfold.ToMe(r=0)), arguments), dense)
    for method in (vitfold.ToMe(r=4), vitfold.Drop(r=4)):
        folded = outputs(vitfold.fold(model, method), arguments)
        assert all(t.dtype == torch.bfloat16 and t.isfinite().all() for t in folded)


@pytest.mark.parametrize("name", ["ViTModel", "BeitModel", "Dinov2Model", "DINOv3ViTModel"])
def test_training_draws_the_same_numbers(name: str) -> None:
    options = {"drop_path_rate": 0.5} if name != "ViTModel" else {"hidden_dropout_prob": 0.3}
    model = hf(name, **options).train()
    arguments = inputs(model)
    torch.manual_seed(0)
    dense = tensors(model(**arguments))
    vitfold.fold(model, vitfold.ToMe(r=0))
    torch.manual_seed(0)
    same(tensors(model(**arguments)), dense)
    folded = tensors(vitfold.fold(model, vitfold.ToMe(r=4))(**arguments))
    assert all(t.isfinite().all() for t in folded)


@every_trunk
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(name: str, reentrant: bool) -> None:
    model = vitfold.fold(hf(name).double(), vitfold.ToMe(r=4)).train()
    arguments = inputs(model)
    arguments["pixel_values"] = arguments["pixel_values"].double().requires_grad_()
    plain, calls = gradients(model, arguments)
    model._set_gradient_checkpointing(True, recompute(reentrant))
    again, more = gradients(model, arguments)
    assert more > calls, "nothing was recomputed"
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def recompute(reentrant: bool) -> Any:
    def checkpoint(function: Any, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=reentrant)

    return checkpoint


def gradients(model: Any, arguments: dict[str, Any]) -> tuple[list[Tensor], int]:
    """Of all weights; and how often the first block's norm ran."""
    calls = []
    block = find(model).blocks[0]
    norm = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
    handle = norm.register_forward_hook(lambda *_: calls.append(1))
    model.zero_grad()
    torch.manual_seed(0)
    total = sum((t.sin().mean() for t in tensors(model(**arguments))), torch.zeros(()))
    total.backward()
    handle.remove()
    return [w.grad.clone() for w in model.parameters() if w.grad is not None], len(calls)


@every_trunk
def test_gradients_are_the_slope_of_what_is_computed(name: str) -> None:
    model = vitfold.fold(hf(name).double(), vitfold.ToMe(r=4))
    arguments = inputs(model)
    x = arguments["pixel_values"].double().requires_grad_()
    towards, step = torch.randn_like(x), 1e-6

    def loss(pixels: Tensor) -> Tensor:
        result = tensors(model(**(arguments | {"pixel_values": pixels})))
        return sum((t.sin().mean() for t in result), torch.zeros(()))

    [gradient] = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        slope = (loss(x + step * towards) - loss(x - step * towards)) / (2 * step)
    assert torch.isclose((gradient * towards).sum(), slope, rtol=1e-5, atol=1e-8)


@every_name
def test_copies_are_folds_of_their_own(name: str) -> None:
    model = vitfold.fold(hf(name), vitfold.ToMe(r=4))
    arguments = inputs(model)
    keys = list(model.state_dict())
    # transformers leaves hooks that cannot be pickled: in backbones at once, else when states are
    # asked for.
    copies = [] if "Backbone" in name else [pickle.loads(pickle.dumps(model))]
    expected = outputs(model, arguments)
    copies.append(copy.deepcopy(model))
    dense = outputs(vitfold.unfold(model), arguments)
    assert list(model.state_dict()) == keys
    for other in copies:
        same(outputs(other, arguments), expected)
        same(outputs(vitfold.unfold(other), arguments), dense)


@every_trunk
def test_flops_are_counted_without_running(name: str) -> None:
    model = vitfold.fold(hf(name), vitfold.ToMe(r=4))
    example = find(model).example()
    assert dry_count(model, example) == count(lambda: model(**example))
    output = find(model).trunk(**example)
    assert type(next(iter(output.values()))) in (torch.Tensor, tuple)  # nothing is kept for later


@every_trunk
def test_hidden_states_leave_later_calls_alone(name: str) -> None:
    """transformers leaves hooks behind; without hidden states blocks hand on what is left."""
    model = vitfold.fold(hf(name), vitfold.ToMe(r=4))
    arguments, visits = inputs(model), list[int]()
    outputs(model, arguments, **STATES)
    block = find(model).blocks[1]
    assert block._forward_hooks

    def hook(_: Any, args: Any) -> None:
        visits.append(args[0].shape[1])

    hook.__module__ = "torch.distributed.fsdp"  # which moves weights and looks at no token
    block.register_forward_pre_hook(hook)
    outputs(model, arguments)
    dense = find(model).prefix + CELLS**2
    assert visits == [dense if "Backbone" in name else dense - 4]


def test_blocks_that_change_under_a_fold_are_refused() -> None:
    model = vitfold.fold(hf("ViTModel"), vitfold.ToMe(r=4))
    model.layers = model.layers[:2]
    with pytest.raises(FoldError, match="unfold it before"):
        model(**inputs(model))


def test_what_is_refused_has_a_reason() -> None:
    swin = transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=32)
    with pytest.raises(
        UnsupportedModel, match=r"SwinForImageClassification cannot be folded: .*window"
    ):
        vitfold.fold(transformers.SwinForImageClassification(swin), "tome", r=1)
    text = hf("CLIPModel").text_model
    with pytest.raises(UnsupportedModel, match="CLIPTextModel cannot be folded: it reads text"):
        vitfold.fold(text, "tome", r=1)


def test_a_timm_model_in_the_wrapper_of_transformers_folds() -> None:
    config = transformers.TimmWrapperConfig(
        architecture="test_vit", model_args={"depth": 2, "img_size": 80}, num_classes=3
    )
    model = transformers.TimmWrapperForImageClassification(config).eval()
    x = {"pixel_values": torch.randn(2, 3, 80, 80)}
    dense = outputs(model, x)
    vitfold.fold(model, vitfold.ToMe(r=5))
    assert [t.shape for t in outputs(model, x)] == [t.shape for t in dense]
    same(outputs(vitfold.fold(model, vitfold.ToMe(r=0)), x), dense)
