"""Fewer visual tokens behind a tower: prompts stay, and all that follows agrees."""

from typing import Any

import pytest
import torch
from support.hf_models import IMAGE
from support.vision_language import MODELS, PACKED, SIZED, area, build, inputs, picture
from torch import Tensor
from torch.nn.functional import pad

import vitfold

pytest.importorskip("transformers")

R = 8

NAMES = tuple(MODELS)


def logits(model: Any, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**arguments).logits  # type: ignore[no-any-return]


def generated(model: Any, arguments: dict[str, Any], **options: Any) -> Tensor:
    options = {"max_new_tokens": 4, "do_sample": False} | options
    return model.generate(**arguments, **options)  # type: ignore[no-any-return]


def reduced(name: str, r: Any = R, method: str = "tome") -> Any:
    return vitfold.fold(build(name), method, r=r, out="reduced")


def left(name: str, blocks: int = 3) -> int:
    """How many of 64 patches are visual tokens behind so many blocks that remove R each."""
    return (64 - R * blocks) // area(name)


def blocks(name: str) -> int:
    return {"Llava": 2}.get(name, 4 if name.startswith("Qwen") else 3)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_removed_changes_nothing(name: str) -> None:
    model = build(name)
    arguments = inputs(name, [picture(0), picture(1)])
    before, said = logits(model, arguments), generated(model, arguments)
    own = {id(m): set(vars(m)) for m in model.modules()}
    vitfold.fold(model, vitfold.ToMe(r=0), out="reduced")
    assert torch.equal(logits(model, arguments), before)
    assert torch.equal(generated(model, arguments), said)
    vitfold.fold(model, vitfold.ToMe(r=R), out="reduced")
    assert logits(model, arguments).shape != before.shape
    vitfold.unfold(model)
    assert {id(m): set(vars(m)) for m in model.modules()} == own
    assert torch.equal(logits(model, arguments), before)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_visual_tokens_reach_the_language_model(name: str) -> None:
    model = reduced(name)
    arguments = inputs(name, [picture(0)])
    places = len(arguments["input_ids"][0])
    gone = 64 // area(name) - left(name, blocks(name))
    assert logits(model, arguments).shape[1] == places - gone
    lengths: list[int] = []
    layer = next(
        m for n, m in model.named_modules() if n.endswith("layers.0.mlp") and "vis" not in n
    )
    hook = layer.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    tokens = generated(model, arguments)
    hook.remove()
    assert lengths[0] == places - gone
    assert set(lengths[1:]) == {1}
    assert torch.equal(tokens[:, :places], arguments["input_ids"])
    assert places < tokens.shape[1] <= places + 4


@pytest.mark.parametrize("name", NAMES)
def test_generating_is_what_the_forwards_say(name: str) -> None:
    model = reduced(name)
    arguments = inputs(name, [picture(0)])
    tokens = generated(model, arguments)
    new = tokens[:, arguments["input_ids"].shape[1] :]
    assert IMAGE not in new, "a placeholder that was generated has no image"
    longer = dict(arguments)
    for number in range(new.shape[1]):
        assert logits(model, longer)[0, -1].argmax() == new[0, number]
        longer["input_ids"] = torch.cat([longer["input_ids"], new[:, number : number + 1]], dim=1)
        text = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": name == "PaliGemma"}
        for along in text.keys() & longer.keys():
            longer[along] = pad(longer[along], (0, 1), value=int(text[along]))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_each_prompt_gives_alone(name: str) -> None:
    model = reduced(name)
    sizes = [(32, 32), (16, 32), (32, 40)] if name in SIZED else [(32, 32)] * 3
    images = [picture(seed, *size) for seed, size in enumerate(sizes)]
    together, said = inputs(name, images), generated(model, inputs(name, images))
    out = logits(model, together)
    for row, image in enumerate(images):
        one = inputs(name, [image])
        one["input_ids"][0, -2] = 5 + row
        alone = logits(model, one)[0]
        torch.testing.assert_close(out[row, -alone.shape[0] :], alone, rtol=1e-4, atol=2e-4)
        tokens = generated(model, one)[0, one["input_ids"].shape[1] :]
        assert torch.equal(said[row, together["input_ids"].shape[1] :][: len(tokens)], tokens)


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_more_images_than_others_are_padded_anew(name: str) -> None:
    model = reduced(name)
    images = [picture(0), picture(1), picture(2)]
    arguments = inputs(name, images, rows=2)  # of which the first row has two
    out = logits(model, arguments)
    one = inputs(name, [images[1]])
    one["input_ids"][0, -2] = 6
    alone = logits(model, one)[0]
    torch.testing.assert_close(out[1, -alone.shape[0] :], alone, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_trained(name: str) -> None:
    model = reduced(name).train()
    arguments = inputs(name, [picture(0)])
    labels = arguments["input_ids"].masked_fill(arguments["input_ids"] == IMAGE, -100)
    loss = model(**arguments, labels=labels).loss
    loss.backward()
    tower = vitfold.folding.families.find(model).blocks[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())
    assert any(bool(p.grad.any()) for p in tower.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_visual_tokens_are_those_of_the_patches_that_stay(name: str) -> None:
    model = reduced(name)
    arguments = inputs(name, [picture(0), picture(1)])
    names = ("pixel_values", "image_sizes", "image_grid_thw")
    given = {key: arguments[key] for key in names if key in arguments}
    with torch.no_grad():
        few = model.model.get_image_features(**given).pooler_output
        every = type(model.model).get_image_features(model.model, **given).pooler_output
    for own, all_ in zip(few, every, strict=True):
        assert len(own) == len(all_) - 64 // area(name) + left(name, blocks(name))
        place, tolerance = -1, 1e-4 * max(1.0, float(all_.abs().max()))
        for row in own:  # merged ones show several times
            like = ((all_[place + 1 :] - row).abs().amax(dim=1) < tolerance).nonzero()
            assert len(like), "visual tokens are those of the tower, in the order of the image"
            place += 1 + int(like[0])


@pytest.mark.parametrize("name", PACKED)
def test_visual_tokens_keep_their_places_in_their_image(name: str) -> None:
    """Positions of three axes: those that stay have the ones that they had, and so has all text."""
    model = build(name)
    arguments = inputs(name, [picture(0), picture(1, 16, 32)])
    seen: list[Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    logits(model, arguments)
    [dense] = seen
    vitfold.fold(model, "tome", r=R, out="reduced")
    logits(model, arguments)
    few = seen[1]
    assert few.shape[:2] == (3, 2)
    for row, mask in enumerate(arguments["attention_mask"].bool()):
        before, after = dense[:, row, mask].T.tolist(), few[:, row].T.tolist()
        after = after[-(sum(mask) - 64 // 4 + 4) :] if row == 0 else after[-8:]
        assert after[-3:] == before[-3:]
        assert subsequence([place for place in after if place != [0, 0, 0]], before)
    assert len({tuple(place) for place in few[:, 0].T.tolist()}) == few.shape[2]


def subsequence(some: list[Any], every: list[Any]) -> bool:
    rest = iter(every)
    return all(one in rest for one in some)
