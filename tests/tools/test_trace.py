"""Traces: counts, maps, pictures."""

import itertools
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import clips
from support.models import hf, images, inputs, registered
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

import vitfold
from vitfold.errors import DataError, FoldError
from vitfold.folding.families import find, processor
from vitfold.methods import Method
from vitfold.tools.draw import GAP, LABEL
from vitfold.tools.trace import Trace, trace

BLOCKS = 3


def traced(method: Method, batch: int = 2) -> Trace:
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=BLOCKS), method)
    return trace(model, images(model, batch))


def test_counts_are_per_block_and_image() -> None:
    assert traced(vitfold.ToMe(r=4)).counts == [[22, 22], [18, 18], [14, 14]]


def test_maps_lead_from_the_original_tokens() -> None:
    maps = traced(vitfold.ToMe(r=4)).maps
    assert [(m.tokens, m.slots) for m in maps] == [(26, 22), (26, 18), (26, 14)]
    assert all(int(m.slot.min()) == 0 for m in maps)


def test_maps_explain_the_dense_features() -> None:
    """Patches of one group show the same features, those of two do not."""
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=BLOCKS), vitfold.ToMe(r=4))
    pixels = images(model, 1)
    slot = trace(model, pixels).maps[-1].slot[0]
    with torch.no_grad():
        features = model.forward_features(pixels)[0]
    same = (features[:, None] == features[None]).all(-1)
    assert torch.equal(same, slot[:, None] == slot[None])


def test_colours_are_those_that_a_checkpoint_of_transformers_had() -> None:
    model = vitfold.fold(hf("ViTModel"), vitfold.ToMe(r=2))
    pixels = torch.rand(1, *find(model).size)
    output = {"image_mean": [0.9, 0.5, 0.1], "image_std": [0.2, 0.5, 0.7]}
    mean, std = (torch.tensor(output[name])[:, None, None] for name in ("image_mean", "image_std"))
    processor.put(model.config, output)
    visits = trace(model, (pixels - mean) / std)
    assert visits.draw(0).tobytes() == visits.draw(pixels[0]).tobytes()


class Normalized(nn.Module):
    """A model that prepares its images itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(F.interpolate(x.float() / 255 - 0.5, (80, 80)))


def test_what_is_traced_is_what_the_model_does() -> None:
    inner = registered("vit_tiny_patch16_224", depth=BLOCKS)
    model = vitfold.fold(Normalized(inner), vitfold.ToMe(r=4))
    raw = torch.randint(0, 256, (2, 3, 100, 60), dtype=torch.uint8)
    maps = trace(model, raw).maps
    prepared = F.interpolate(raw.float() / 255 - 0.5, (80, 80))
    for ours, theirs in zip(maps, trace(inner, prepared).maps, strict=True):
        assert torch.equal(ours.slot, theirs.slot)
    ragged = vitfold.fold(Normalized(inner), vitfold.LTMP(merge_threshold=0.2))
    vitfold.freeze(ragged, raw)
    assert vitfold.trace(ragged, raw).counts == vitfold.trace(inner, prepared).counts


def test_models_that_read_text_are_traced_with_and_without_it() -> None:
    pytest.importorskip("transformers")
    model = vitfold.fold(hf("CLIPModel"), vitfold.ToMe(r=3))
    arguments = inputs(model)
    counts = trace(model, arguments["pixel_values"]).counts
    assert trace(model, {"pixel_values": arguments["pixel_values"]}).counts == counts
    ones = torch.ones_like(arguments["input_ids"])
    words = {"input_ids": ones, "attention_mask": ones}
    traced = trace(model, words | arguments)
    assert traced.counts == counts
    assert torch.equal(traced.images, arguments["pixel_values"])  # type: ignore[arg-type]
    assert vitfold.flops(model, words | arguments) > 0
    with pytest.raises(DataError, match="CLIPModel reads text too"):
        vitfold.flops(model, arguments["pixel_values"])


def test_naflex_is_measured_as_it_is_called() -> None:
    model = vitfold.fold(registered("naflexvit_base_patch16_gap", depth=BLOCKS), vitfold.ToMe(r=3))
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"), -1)
    arguments = {
        "patches": torch.randn(1, 20, 768),
        "patch_coord": places.view(1, 20, 2),
        "patch_valid": torch.ones(1, 20, dtype=torch.bool),
    }
    tokens = [numbers[0] for numbers in trace(model, arguments).counts]
    assert [a - b for a, b in itertools.pairwise(tokens)] == [3] * (BLOCKS - 1)
    assert vitfold.flops(model, arguments) > 0
    assert vitfold.throughput(model, arguments, repeats=1, warmup=0).median > 0


def test_dense_blocks_keep_all() -> None:
    assert traced(vitfold.ToMe(r=[0, 5])).counts == [[26, 26], [21, 21], [21, 21]]


def test_tracing_leaves_outputs_alone() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224"), vitfold.ToMe(r=4))
    pixels = images(model)
    with torch.no_grad():
        before = model(pixels)
        trace(model, pixels)
        assert torch.equal(model(pixels), before)


def test_a_dense_model_has_no_trace() -> None:
    model = registered("vit_tiny_patch16_224")
    with pytest.raises(FoldError, match="not folded"):
        trace(model, images(model))


def test_groups_share_a_colour_and_dropped_patches_are_dark() -> None:
    result = traced(vitfold.Drop(r=5), 1)
    groups = result.groups()
    picture = result.draw(0)
    dropped = (groups < 0).nonzero()
    assert len(dropped) == BLOCKS * 5
    cell = picture.width // groups.shape[1]
    y, x = (int(v) * cell + cell // 2 for v in dropped[0])
    assert max(picture.getpixel((x, y))) < 60


def test_a_merged_group_is_one_colour() -> None:
    result = traced(vitfold.ToMe(r=10), 1)
    groups, picture = result.groups(), result.draw(0)
    values, counts = groups.unique(return_counts=True)
    places = (groups == values[counts.argmax()]).nonzero()
    cell = picture.width // groups.shape[1]
    inside = {picture.getpixel((int(x) * cell + 3, int(y) * cell + 3)) for y, x in places}
    assert len(places) > 1
    assert len(inside) == 1


def test_paints_on_a_given_picture() -> None:
    result = traced(vitfold.ToMe(r=4), 1)
    red = Image.new("RGB", (100, 100), "red")
    assert result.draw(red).getpixel((3, 3)) == (255, 0, 0)


def test_strip_shows_the_image_and_every_block_that_changed() -> None:
    result = traced(vitfold.ToMe(r=[4, 0, 4]), 1)
    assert result.strip(0).width > 2.9 * result.draw(0).width


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(DataError, match="image=7"):
        traced(vitfold.ToMe(r=4)).draw(7)


def test_what_is_no_picture_is_refused() -> None:
    result = traced(vitfold.ToMe(r=4))
    for arguments in ("0", torch.zeros(2, 3, 8, 8), 0.5):
        with pytest.raises(DataError, match="expected"):
            result.draw(arguments)


def test_numbers_of_numpy_are_numbers() -> None:
    result = traced(vitfold.ToMe(r=4))
    assert result.draw(numpy.int64(0)).tobytes() == result.draw(0).tobytes()


@pytest.mark.parametrize("level", [0.1, 1.0])
def test_pictures_have_the_colours_that_images_had(level: float) -> None:
    """Normalized as the model expects it; as they are; and by nobody knows what."""
    model = vitfold.fold(registered("vit_tiny_patch16_224"), vitfold.ToMe(r=2))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    flat = torch.full_like(images(model, 1), level)
    for arguments in (flat, (flat - mean) / std):
        drawn = pil_to_tensor(vitfold.trace(model, arguments).draw(0)).flatten(1)
        inside = drawn[:, (drawn < 250).all(0)] if level < 1 else drawn
        assert ((inside.float() / 255 - level).abs() < 0.01).all()
    drawn = pil_to_tensor(vitfold.trace(model, images(model, 1) * 50).draw(0))
    assert drawn.max() == 255


def test_blocks_are_told_by_whole_numbers() -> None:
    for odd in ("1", 1.5, None):
        with pytest.raises(DataError, match="expected a whole number"):
            traced(vitfold.ToMe(r=2)).draw(0, block=odd)  # type: ignore[arg-type]


def test_a_clip_is_drawn_as_frames_side_by_side() -> None:
    """A row for the clip and for every block, a frame for every step of time; a group has one
    colour, whatever frames it lies in."""
    model = vitfold.fold(clips.video("VideoMAEModel"), vitfold.RunLength())
    [(key, pixels)] = clips.inputs(model).items()
    pixels[0] = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1)
    visits = trace(model, {key: pixels})
    picture = visits.draw(0)
    side = 224
    assert picture.size == (3 * side + 2 * GAP, side)
    frames = [picture.crop((x, 0, x + side, side)) for x in (0, side + GAP, 2 * (side + GAP))]
    assert len({frame.tobytes() for frame in frames}) == 1
    assert len({visits.draw(1).crop((x, 0, x + side, side)).tobytes() for x in (0, 230, 460)}) == 3
    assert picture.getpixel((side + 1, 5)) == (255, 255, 255)
    strip = visits.strip(0)
    assert strip.size == (picture.width, 2 * (side + GAP + LABEL))
    shown = strip.crop((0, side + GAP + 2 * LABEL, picture.width, 2 * (side + GAP + LABEL) - GAP))
    assert shown.tobytes() == picture.tobytes()
    assert visits.draw(pixels[0].clamp(0, 1)).tobytes() == picture.tobytes()
    with pytest.raises(DataError, match=r"shape \[2, 3\]: expected \[C, H, W\], or \[T, C, H, W\]"):
        visits.draw(torch.zeros(2, 3))


def test_frames_of_a_clip_that_are_images_to_a_model() -> None:
    model = vitfold.fold(clips.video("VideoPrismVisionModel"), vitfold.ToMe(r=3))
    visits = trace(model, clips.inputs(model))
    assert len(visits.counts[0]) == 6
    assert visits.draw(5).size == (224, 224)
