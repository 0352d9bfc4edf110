"""Every family with another number of tokens for every image: packed, masked and alone agree."""

from typing import Any

import pytest
import torch
from support import clips
from support.compare import tensors
from support.hf_models import DEEP, TRUNKS, arguments_of, small
from support.models import KINDS, hf, images, inputs, kind
from torch import Tensor

import vitfold
from vitfold import LTMP
from vitfold.folding.calls import fold_of

IDLE = LTMP(merge_threshold=1.0, prune_threshold=0.0)

OTHERS = [name for name in TRUNKS if not name.startswith(("Aimv2", "Pixtral", "Video", "ViTMAE"))]
"""Of those left out, norms round to float32, two take images one after another, and one draws lots
for every batch."""

ELSEWHERE = ("VideoPrism", "VideoMAEForPreTraining")
"""Capped logits, which take no method of our own attention; and one whose first output is a loss:
`test_video.py` looks at both."""

CLIPS = [name for name in clips.TRUNKS if not name.startswith(ELSEWHERE)]

HUGGING_FACE = [*(name for names in DEEP.values() for name in names), *CLIPS]


def halving(model: Any, call: Any) -> None:
    """Fold a model with thresholds at which about half of its patches leave."""
    result = vitfold.fold(model, IDLE)
    learned: Any = fold_of(result).learned
    patches = fold_of(result).family.layout().patches
    learned.merge.data.fill_(0.55)
    learned.prune.data.fill_(0.6 / patches)
    with torch.no_grad():
        call()


def near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def row(arguments: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: part[index : index + 1] for name, part in arguments.items()}


@torch.no_grad()
def check(model: Any, arguments: dict[str, Tensor]) -> None:
    """Thresholds that let all pass change no bit; others give the same packed, masked, alone."""

    def call(of: dict[str, Tensor] = arguments) -> list[Tensor]:
        return tensors(model(of["x"]) if "x" in of else model(**of))

    dense = call()
    vitfold.fold(model, IDLE)
    assert all(map(torch.equal, call(), dense))
    halving(model, call)
    together = call()
    with vitfold.masked():
        near(together, call())
    visits = (
        arguments["x"]
        if "x" in arguments
        else {k: arguments[k] for k in arguments if k != "input_ids"}
    )
    counts = vitfold.trace(model, visits).counts
    layout = fold_of(model).family.layout()
    assert max(counts[-1]) < layout.tokens, "nothing has left"
    batch = len(next(iter(arguments.values())))
    if "input_ids" not in arguments:
        alone = [call(row(arguments, index)) for index in range(batch)]
        near(together, [torch.cat(parts) for parts in zip(*alone, strict=True)])
    learned: Any = fold_of(model).learned
    learned.prune.data.zero_()
    learned.merge.data[0] = 1.0  # the first blocks look at nothing, and attend as the model does
    some = call()
    with vitfold.masked():
        near(some, call())
    vitfold.unfold(model)
    assert all(map(torch.equal, call(), dense))


@torch.no_grad()
def check_fixed(model: Any, arguments: dict[str, Tensor]) -> None:
    """Attention is looked at without packing too."""
    if "input_ids" in arguments:
        return

    def call(of: dict[str, Tensor] = arguments) -> list[Tensor]:
        return tensors(model(of["x"]) if "x" in of else model(**of))

    vitfold.fold(model, vitfold.MergeDrop(r=3, drop=2))
    alone = [call(row(arguments, index)) for index in range(3)]
    near(call(), [torch.cat(parts) for parts in zip(*alone, strict=True)])


@pytest.mark.parametrize("name", KINDS)
def test_timm(name: str) -> None:
    model = kind(name).double()
    x = images(model, 3)
    check(model, {"x": x})
    check_fixed(model, {"x": x})


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hugging_face(name: str, attention: str) -> None:
    pytest.importorskip("transformers")
    model = hf(name).double()
    model.set_attn_implementation(attention)
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in inputs(model, 3).items()}
    check(model, arguments)
    check_fixed(model, arguments)


@pytest.mark.parametrize("name", OTHERS)
def test_other_packages_of_hugging_face(name: str) -> None:
    pytest.importorskip("transformers")
    model = small(name, **({"num_experts": 1} if "Pose" in name else {})).double()
    arguments = {k: v.double() for k, v in arguments_of(model, 3).items() if k != "dataset_index"}
    check(model, arguments)
    check_fixed(model, arguments)


def test_padding_leaves_first() -> None:
    """NaFlex images of several sizes: each as it is alone, without its padding."""
    model = kind("naflexvit_base_patch16_gap").double()
    halving(model, lambda: None)
    sizes = [(5, 5), (3, 4), (2, 6)]
    generator = torch.Generator().manual_seed(3)
    most = max(height * width for height, width in sizes)
    pixels = torch.randn(3, most, 16 * 16 * 3, generator=generator, dtype=torch.float64)
    coord = torch.zeros(3, most, 2, dtype=torch.long)
    valid = torch.zeros(3, most, dtype=torch.bool)
    for image, (height, width) in enumerate(sizes):
        place = torch.arange(height * width)
        coord[image, : len(place)] = torch.stack([place // width, place % width], dim=1)
        valid[image, : len(place)] = True
    together = model(pixels, patch_coord=coord, patch_valid=valid)
    for image, (height, width) in enumerate(sizes):
        one = slice(image, image + 1), slice(0, height * width)
        alone = model(pixels[one], patch_coord=coord[one], patch_valid=valid[one])
        torch.testing.assert_close(together[image : image + 1], alone, rtol=1e-9, atol=1e-9)
    with vitfold.masked():
        other = model(pixels, patch_coord=coord, patch_valid=valid)
    torch.testing.assert_close(together, other, rtol=1e-9, atol=1e-9)


def test_what_an_image_loses_does_not_change_how_another_is_computed() -> None:
    """Some attention rounds to float32: where it is used is no matter of the neighbours."""
    pytest.importorskip("transformers")
    model = hf("ViTModel").double()
    model.set_attn_implementation("eager")
    arguments = {k: v.double() for k, v in inputs(model, 3).items()}
    vitfold.fold(model, IDLE)
    learned: Any = fold_of(model).learned
    tokens = fold_of(model).family.layout().tokens
    low, high = 0.0, 1.0
    for _ in range(50):  # until some image has lost tokens, and some other none
        learned.merge.data[0] = (low + high) / 2
        last = vitfold.trace(model, arguments).counts[-1]
        if min(last) < max(last) == tokens:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if min(last) < tokens else (low, middle)
    assert min(last) < max(last) == tokens
    with torch.no_grad():
        together = tensors(model(**arguments))
        alone = [tensors(model(**row(arguments, index))) for index in range(3)]
    near(together, [torch.cat(parts) for parts in zip(*alone, strict=True)])
