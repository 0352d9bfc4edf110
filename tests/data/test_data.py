"""Images for a model: as it says that it wants them, and those that were meant."""

import importlib.util
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from PIL import Image
from support import models
from support.cli import pictures
from support.compare import near
from support.files import picture, shards
from support.hf_hosts import host
from torch import nn

import vitfold
from vitfold.data import (
    Source,
    classes_of,
    labelled,
    loader,
    preprocessing,
    renormalized,
    shuffled,
)  # fmt: skip
from vitfold.data.pictures import read_photograph
from vitfold.errors import DataError, MissingExtra, PlanError, ShapeError, UnsupportedModel
from vitfold.folding.families import processor
from vitfold.saving.models import create_model, save_model
from vitfold.tools.wants import data_config

SAID = {
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.4, 0.3, 0.2],
    "image_std": [0.2, 0.3, 0.4],
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"height": 20, "width": 20},
}


CROP = {"do_center_crop": True, "crop_size": {"height": 20, "width": 20}}


# Of transformers


def checkpoint(path: Path, **output: Any) -> Path:
    models.hf("ViTForImageClassification").save_pretrained(path)
    (path / processor.FILE).write_text(json.dumps(SAID | output))
    return path


@pytest.mark.parametrize(
    "output",
    [
        {},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 20}, **CROP},
        {"size": {"shortest_edge": 25}, **CROP},
        {"size": {"height": 25, "width": 25}, **CROP},
        {"size": 20},
        {"size": 25, "do_center_crop": True, "crop_size": 20},
        {"image_processor_type": "CLIPImageProcessor", "size": 25, **CROP},
    ],
)
def test_a_checkpoint_gets_images_as_its_processor_makes_them(
    tmp_path: Path, output: dict[str, Any]
) -> None:
    import transformers

    model = create_model(f"hf:{checkpoint(tmp_path, **output)}", pretrained=True)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = picture(40, 30)
    wanted = theirs(image, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing(model)(image)
    assert ours.shape == wanted.shape
    assert float((ours - wanted).abs().max()) < 0.05  # a level of grey, over a std of 0.2


def test_what_is_said_of_images_goes_with_the_model(tmp_path: Path) -> None:
    model = create_model(f"hf:{checkpoint(tmp_path / 'before')}", pretrained=True)
    wanted = data_config(model)
    assert wanted["mean"] == pytest.approx((0.4, 0.3, 0.2))
    save_model(model, tmp_path / "dense")
    dense = json.loads((tmp_path / "dense" / "plan.json").read_text())
    assert dense["model"]["arguments"]["images"] == SAID
    vitfold.fold(model, "tome", r=2)
    save_model(model, tmp_path / "folded")
    for name in "dense", "folded":
        assert data_config(create_model(tmp_path / name)) == wanted
    plan = json.loads((tmp_path / "folded" / "plan.json").read_text())
    for broken in {"image_mean": "grey"}, {"wings": 2}, {"image_std": [0, 0, 0]}, {"resample": 99}:
        images = {**plan["model"]["arguments"]["images"], **broken}
        arguments = plan["model"]["arguments"] | {"images": images}
        text = json.dumps(plan | {"model": plan["model"] | {"arguments": arguments}})
        (tmp_path / "folded" / "plan.json").write_text(text)
        with pytest.raises(PlanError, match=r"model\.arguments\.images"):
            create_model(tmp_path / "folded")


@pytest.mark.parametrize(
    "odd",
    [
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, 0.5, math.nan]},
        {"image_std": "grey"},
        {"rescale_factor": 0},
        {"resample": -1},
        {"resample": "bicubic"},
        {"size": [20, 20]},
        {"size": 0},
        {"do_normalize": "no"},
        {"do_center_crop": True, "crop_size": {"shortest_edge": -3}},
    ],
    ids=str,
)
def test_what_a_checkpoint_cannot_mean_is_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"preprocessor_config\.json: \w+="):
        create_model(f"hf:{checkpoint(tmp_path, **odd)}")


def test_what_another_model_said_of_images_is_gone(tmp_path: Path) -> None:
    output = create_model(f"hf:{checkpoint(tmp_path / 'output')}")
    save_model(output, tmp_path / "same")
    save_model(models.hf("ViTForImageClassification"), tmp_path / "same")
    assert not (tmp_path / "same" / processor.FILE).exists()


def test_a_plan_of_before_says_nothing_of_images(tmp_path: Path) -> None:
    model = vitfold.fold(models.hf("ViTForImageClassification"), "tome", r=2)
    vitfold.save(model, tmp_path, backbone=True)
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["model"]["arguments"]["images"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert vitfold.load(tmp_path)


def test_a_checkpoint_that_says_nothing_is_noted(tmp_path: Path) -> None:
    models.hf("ViTModel").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no preprocessor_config\.json: images are prepared"):
        create_model(f"hf:{tmp_path}", pretrained=True)


DINO = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, **CROP}


def dino(path: Path, **output: Any) -> Path:
    models.hf("Dinov2Model", image_size=40).save_pretrained(path)
    (path / processor.FILE).write_text(json.dumps(SAID | DINO | output))
    return path


def test_a_processor_goes_before_the_configuration(tmp_path: Path) -> None:
    """DINOv2 was trained on larger images than it gets: its positions are interpolated."""
    import transformers

    model = create_model(f"hf:{dino(tmp_path)}", pretrained=True)
    assert model.config.image_size == 40
    assert data_config(model)["input_size"] == (3, 20, 20)
    image = picture(40, 30)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    wanted = theirs(image, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing(model)(image)
    assert float((ours - wanted).abs().max()) < 0.05
    patches = (20 // int(model.config.patch_size)) ** 2
    vitfold.fold(model, "tome", r=1)
    assert vitfold.trace(model, ours[None]).counts[0] == [patches]
    save_model(model, tmp_path / "again")
    assert data_config(create_model(tmp_path / "again"))["input_size"] == (3, 20, 20)


def test_a_size_that_patches_do_not_fill_is_left(tmp_path: Path) -> None:
    path = dino(tmp_path, crop_size={"height": 21, "width": 21})
    assert data_config(create_model(f"hf:{path}"))["input_size"] == (3, 40, 40)


def test_another_size_may_be_asked_for(tmp_path: Path) -> None:
    path = dino(tmp_path / "dino")
    model = create_model(f"hf:{path}", img_size=40)
    config = data_config(model)
    assert config["input_size"] == (3, 40, 40)
    assert config["crop_pct"] == pytest.approx(20 / 32, abs=0.01)
    assert preprocessing(model)(picture(40, 30)).shape == (3, 40, 40)
    with pytest.raises(ShapeError, match="whose patches are"):
        create_model(f"hf:{path}", img_size=41)
    fixed = f"hf:{checkpoint(tmp_path / 'vit')}"
    size = data_config(create_model(fixed))["input_size"][1]
    assert create_model(fixed, img_size=size)
    with pytest.raises(ShapeError, match=f"takes images of {size}x{size} alone"):
        create_model(fixed, img_size=2 * size)


def test_what_holds_a_tower_and_takes_images_alone_is_made_by_name(tmp_path: Path) -> None:
    for name in ("DepthAnythingForDepthEstimation", "ZoeDepthForDepthEstimation"):
        own = host(name)
        own.save_pretrained(tmp_path / name)
        (tmp_path / name / processor.FILE).write_text(json.dumps(SAID))
        model = create_model(tmp_path / name)
        assert type(model) is type(own)
        assert data_config(model)["mean"] == pytest.approx((0.4, 0.3, 0.2))
    host("LlavaForConditionalGeneration").save_pretrained(tmp_path / "llava")
    with pytest.raises(UnsupportedModel, match="is no image model that can be folded"):
        create_model(tmp_path / "llava")


# Of other models


def normalized(mean: float, std: float) -> nn.Module:
    overlay = {"mean": (mean,) * 3, "std": (std,) * 3}
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=3,
        pretrained_cfg_overlay=overlay,
    ).eval()  # fmt: skip


def test_a_model_on_the_images_of_another_sees_its_own() -> None:
    base, other = normalized(0.5, 0.5), normalized(0.4, 0.2)
    assert renormalized(other, normalized(0.4, 0.2)) is other
    image = picture(32, 32)
    ours, theirs = (preprocessing(model)(image)[None] for model in (other, base))
    assert not torch.allclose(ours, theirs)
    near([renormalized(other, base)(theirs)], [other(ours)], 1e-5)


def test_one_channel_and_low_precision_are_renormalized_too() -> None:
    overlay = {"mean": (0.1,) * 3, "std": (0.3,) * 3}
    one, other = (
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, in_chans=1, **options)
        for options in ({}, {"pretrained_cfg_overlay": overlay})
    )
    x = torch.randn(2, 1, 32, 32)
    assert renormalized(other, one)(x).isfinite().all()
    assert renormalized(other.bfloat16(), one)(x.bfloat16()).dtype == torch.bfloat16


# Files


def test_processes_read_a_tar_as_one_does(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", classes=3, each=12)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(folder, "train")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    result = []
    for workers in 0, 3:
        dataset = labelled(model, Source(root=tmp_path, split="train"))
        result.append(torch.cat([images for images, _ in loader(dataset, 2, workers)]))
    assert torch.equal(*result)


def test_a_broken_image_gives_way_to_one_of_its_own_part(tmp_path: Path) -> None:
    root = tmp_path / "train"
    for number in range(10):
        (root / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "a" / f"{number}.png")
    (root / "a" / "8.png").write_bytes(b"no picture")
    part = Source(root=tmp_path, split="train[:90%]").open()
    assert [part[place][0].getpixel((0, 0))[0] for place in (7, 8)] == [7, 0]
    whole = Source(root=tmp_path, split="train").open()
    assert whole[8][0].getpixel((0, 0))[0] == 9
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    judged = labelled(model, Source(root=tmp_path, split="train[:90%]"))
    with pytest.raises(DataError, match=r"8\.png cannot be read as an image"):
        judged[8]


def test_deep_pictures_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "train", classes=2, each=2)
    for file in (tmp_path / "train").rglob("*.png"):
        Image.fromarray(numpy.full((8, 8), 15000, dtype=numpy.uint16)).save(file)
    with pytest.raises(DataError, match=r"0\.png has more than 8 bits a channel"):
        Source(root=tmp_path, split="train").open()


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("train", "train", True),
        ("train[:90%]", "train", True),
        ("train[:90%]", "train[80%:]", True),
        ("train[:90%]", "train[90%:]", False),
        ("train", "validation", True),  # where there are no splits
        ("train[:50%]", "validation", True),
        ("train[:50%]", "validation[50%:]", False),
    ],
)
def test_parts_that_overlap_have_images_in_common(
    tmp_path: Path, one: str, other: str, common: bool
) -> None:
    pictures(tmp_path, classes=2, each=10)
    sources = [Source(root=tmp_path, split=split) for split in (one, other)]
    assert sources[0].shares(sources[1]) == sources[1].shares(sources[0]) == common


def test_channels_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match=r"std=\[0\.0, 0\.0, 0\.0\]: expected numbers above 0"):
        preprocessing(normalized(0.5, 0.0))


# Of other libraries


@pytest.mark.parametrize("kind", ["hfds", "wds"])
def test_datasets_of_other_libraries_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    if kind == "wds":
        shards(tmp_path)
        source = Source("wds/any", tmp_path, "validation")
    else:
        pictures(tmp_path / "images" / "validation", classes=2, each=3)
        source = Source(f"{kind}/./images", tmp_path / "cache", "validation")
    visits = [(image.shape, int(label)) for image, label in labelled(model, source)]
    assert sorted(label for _, label in visits) == [0, 0, 0, 1, 1, 1]
    assert {shape for shape, _ in visits} == {(3, 32, 32)}


def test_what_is_no_kind_of_dataset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "wsd/any", "cifar10", "folder/x":
        with pytest.raises(DataError, match=f"--dataset '{name}'.*expected KIND/NAME"):
            Source(name, Path()).open()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r'webdataset is not installed: pip install "vitfold\['):
        Source("wds/any", Path()).open()


def test_an_image_that_is_a_bomb_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pictures(tmp_path / "train", classes=2, each=1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    judged = labelled(model, Source(root=tmp_path, split="train"))
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        judged[0]


def test_a_bomb_is_one_line_for_who_passes_over_broken_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pictures(tmp_path / "train", classes=2, each=1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    images = labelled(model, Source(root=tmp_path, split="train"), skip=True)
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        shuffled(images, 0, 2)[0]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "loop", "nothing"])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="--data-dir"):
        Source(root=tmp_path / name).open()


# Pictures


def test_pictures_that_cannot_be_read_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    picture().save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for name, content in ("text", b"no picture"), ("cut", whole[: len(whole) // 2]), ("empty", b""):
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.png cannot be read"):
            read_photograph(tmp_path / f"{name}.png")
    for odd in tmp_path, tmp_path / "no.png", Path("a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            read_photograph(odd)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # of 900: a warning of Pillow's
    assert read_photograph(tmp_path / "whole.png").size == (30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"whole\.png cannot be read: it has more than 20 pixels"):
        read_photograph(tmp_path / "whole.png")


def test_a_picture_is_rgb_upright_and_the_first_of_many(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(40, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert read_photograph(tmp_path / "turned.jpg").size == (20, 40)
    picture().convert("CMYK").save(tmp_path / "print.jpg")
    assert read_photograph(tmp_path / "print.jpg").mode == "RGB"
    first, then = Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 200)
    first.save(tmp_path / "many.gif", save_all=True, append_images=[then])
    assert read_photograph(tmp_path / "many.gif").getpixel((0, 0)) == (10, 10, 10)
    Image.fromarray(numpy.full((8, 8), 15000, dtype=numpy.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_photograph(tmp_path / "deep.png")


# Digits


def test_digits_are_a_dataset_like_any_other() -> None:
    model = create_model("digits", pretrained=True)
    train, test = (Source("digits", split=split) for split in ("train", "validation"))
    assert not train.shares(test)
    assert test.shares(Source("digits", split="test[50%:]"))
    images = labelled(model, test, limit=64)
    assert len(images) == 64
    assert images[0][0].shape == (1, 56, 56)
    half = labelled(model, replace(test, split="val[:50%]"))
    assert abs(len(half) / len(test.open()) - 0.5) < 0.02
    assert classes_of(test.open()) == 10
    x, labels = next(iter(loader(images, 64, 0)))
    assert float((model(x).argmax(1) == labels).float().mean()) > 0.9
    ours = timm.create_model("vit_tiny_patch16_224", img_size=56, patch_size=8, in_chans=1, depth=1)
    assert torch.equal(labelled(ours, test)[3][0], labelled(model, test)[3][0])


def test_what_the_digits_cannot_be_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(DataError, match="takes images of 3x32x32, the digits are of 1x56x56"):
        labelled(model, Source("digits"))
    with pytest.raises(DataError, match="split 'dev': the digits are split already"):
        Source("digits", split="dev").open()
    with pytest.raises(DataError, match="leave out --data-dir"):
        Source("digits", Path()).open()
    with pytest.raises(DataError, match="leave out --class-map"):
        Source("digits", class_map={"zero": 0}).open()
