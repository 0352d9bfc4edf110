"""The vision towers of transformers' Qwen models: packed, merged by squares, windowed in part."""

import itertools
from typing import Any

import pytest
import torch
from support.compare import tensors
from support.vision_language import PACKED, build, inputs, patches, picture
from torch import Tensor

import vitfold
from vitfold.folding.calls import watch

transformers = pytest.importorskip("transformers")

SIZES = ((32, 32), (16, 32), (32, 40))


def tower(name: str) -> Any:
    return build(name).model.visual.double()


def arguments(*images: Tensor) -> dict[str, Tensor]:
    shapes = [[1, image.shape[1] // 4, image.shape[2] // 4] for image in images]
    pixels = torch.cat([patches(image) for image in images])
    return {"hidden_states": pixels.double(), "grid_thw": torch.tensor(shapes)}


def pictures() -> list[Tensor]:
    return [picture(seed, *size) for seed, size in enumerate(SIZES)]


def read(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(**inputs))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_restored_towers_hand_out_what_dense_ones_do(name: str, attention: str) -> None:
    model = tower(name)
    model.set_attn_implementation(attention)
    given = arguments(*pictures())
    dense = read(model, given)
    vitfold.fold(model, vitfold.ToMe(r=0))
    assert all(map(torch.equal, read(model, given), dense))
    vitfold.fold(model, vitfold.ToMe(r=6))
    folded = read(model, given)
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert not torch.allclose(folded[0], dense[0], rtol=1e-3)
    assert all(map(torch.equal, read(vitfold.unfold(model), given), dense))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("method", ["tome", "ward", "drop"])
def test_images_of_several_sizes_get_what_they_get_alone(name: str, method: str) -> None:
    model = vitfold.fold(tower(name), method, r=6)
    together = read(model, arguments(*pictures()))
    alone = [read(model, arguments(image)) for image in pictures()]
    for index, whole in enumerate(together):
        torch.testing.assert_close(whole, torch.cat([parts[index] for parts in alone]))


@pytest.mark.parametrize("name", PACKED)
def test_hidden_states_are_dense(name: str) -> None:
    model, given = tower(name), arguments(*pictures())
    with torch.no_grad():
        dense = model(**given, output_hidden_states=True).hidden_states
        vitfold.fold(model, vitfold.ToMe(r=6))
        folded = model(**given, output_hidden_states=True).hidden_states
    assert [t.shape for t in folded] == [t.shape for t in dense]


@torch.no_grad()
def test_windows_go_on_with_the_squares_that_they_have_left() -> None:
    """Block by block, over all tokens with a mask, what a folded tower computes in windows."""
    model = vitfold.fold(tower("Qwen2_5_VL"), vitfold.ToMe(r=8))
    given = arguments(picture(0), picture(1, 16, 32))
    entered: list[Any] = []

    def enters(_: Any, args: Any, kwargs: Any) -> None:
        entered.append((args, kwargs))

    hooks = [block.register_forward_pre_hook(enters, with_kwargs=True) for block in model.blocks]
    model(**given)
    for hook in hooks:
        hook.remove()
    with watch() as runs:
        out = model(**given).last_hidden_state
    x, states, calls = entered[0][0][0], runs[-1].states, [kwargs for _, kwargs in entered]
    pairs = itertools.pairwise(states)
    for block, (state, after), call in zip(model.blocks, pairs, calls, strict=True):
        x = by_hand(block, x, state, call)
        step = after.maps[-1]
        x = step.fold(x.unsqueeze(0), state.sizes())[0]
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(
        states[-1].unfold(x.unsqueeze(0))[0], out, rtol=1e-3, atol=1e-5
    )  # norms and turns round to float32
    lengths = calls[0]["cu_seqlens"].diff()
    assert len(lengths) > 2, "the first block has windows"


def by_hand(block: Any, x: Tensor, state: Any, call: dict[str, Any]) -> Tensor:
    """A block's attention on the tokens of now."""
    attention = block.attn
    total = int(call["cu_seqlens"][-1])
    origin = torch.arange(total) if state.origin is None else state.origin[0]
    window = torch.bucketize(origin, call["cu_seqlens"].long(), right=True)
    qkv = attention.qkv(block.norm1(x)).view(len(x), 3, attention.num_heads, -1)
    cos, sin = (table[origin].unsqueeze(1) for table in call["position_embeddings"])
    q, k = (part * cos + turned(part) * sin for part in (qkv[:, 0], qkv[:, 1]))
    logits = torch.einsum("ihd,jhd->hij", q, k) * attention.scaling + state.sizes()[0].log()
    logits = logits.masked_fill(window[:, None] != window[None], float("-inf"))
    mixed = torch.einsum("hij,jhd->ihd", logits.softmax(dim=-1), qkv[:, 2])
    return x + attention.proj(mixed.flatten(1))


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def test_what_goes_by_no_squares_is_refused_of_windows() -> None:
    model = tower("Qwen2_5_VL")
    for method in (vitfold.LTMP(), vitfold.DynamicViT(flops=0.7)):
        with pytest.raises(vitfold.VitfoldError, match=r"squares|class token"):
            vitfold.fold(model, method)
        assert vitfold.folded(model) is None


@pytest.mark.parametrize("name", PACKED)
def test_a_share_of_the_flops_is_solved(name: str) -> None:
    model = vitfold.fold(build(name), "tome", flops=0.7)
    trunk = model.model.visual
    given = {k: v.float() if v.is_floating_point() else v for k, v in arguments(picture(0)).items()}
    assert any(vitfold.folded(model).schedule)  # type: ignore[union-attr]
    assert read(trunk, given)
    whole = inputs(name, [picture(0), picture(1)])
    assert vitfold.flops(model, whole) < vitfold.flops(vitfold.unfold(model), whole)
