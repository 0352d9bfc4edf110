"""Images without labels: what is read, in which order, and what cannot be."""

import re
import tarfile
import warnings
from pathlib import Path

import numpy
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.cli import pictures
from support.files import picture, shards
from torch import nn

from vitfold.data import Source, batches, labelled, loader, preprocessing, unlabelled
from vitfold.errors import DataError
from vitfold.saving.models import create_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)


def photograph(path: Path, brightness: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (brightness, 0, 0)).save(path, **options)
    return path


def brightness(images: torch.Tensor) -> list[int]:
    """What `photograph` painted, of images normalized by a mean and a std of one half."""
    return [round(float(image[0].mean() + 1) / 2 * 255) for image in images]


NAMES = ("10.png", "9.png", "b/1.png", "b/deep/er/2.JPG", "a/3.jpeg")
ORDER = ("9.png", "10.png", "a/3.jpeg", "b/1.png", "b/deep/er/2.JPG")
"""As people count."""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_folders_and_tars_of_any_shape_are_read_in_order(
    model: nn.Module, tmp_path: Path, packed: bool, workers: int
) -> None:
    shades = {name: 20 * number for number, name in enumerate(NAMES)}
    for name, shade in shades.items():
        photograph(tmp_path / "photos" / name, shade)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    root = tmp_path / "photos"
    if packed:
        root = tmp_path / "photos.tar"
        with tarfile.open(root, "w") as tar:
            for name in NAMES:
                tar.add(tmp_path / "photos" / name, name)
    images = unlabelled(model, Source(root=root))
    assert [len(batch) for batch in batches(images, 2, workers)] == [2, 2, 1]
    shown = brightness(torch.cat(list(batches(images, 2, workers))))
    assert shown == pytest.approx([shades[name] for name in ORDER], abs=2)  # JPEG


def test_pixels_are_those_of_labelled_reading(model: nn.Module, tmp_path: Path) -> None:
    """A camera's note that a picture is turned is passed over by both."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = picture(60, 40)
    for name, label in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        noise.rotate(180 * label).save(tmp_path / name / "1.jpg", exif=exif)
    noise.convert("P").save(tmp_path / "b" / "2.png")
    source = Source(root=tmp_path)
    (with_labels,) = (images for images, _ in loader(labelled(model, source), 4, 0))
    (without,) = batches(unlabelled(model, source), 4)
    assert torch.equal(with_labels, without)
    upright = preprocessing(model)(Image.open(tmp_path / "a" / "1.jpg").convert("RGB"))
    assert torch.equal(without[0], upright)


def test_a_split_is_a_split_and_other_folders_are_none(model: nn.Module, tmp_path: Path) -> None:
    for number in range(4):
        photograph(tmp_path / "both" / "validation" / f"{number}.png")
        photograph(tmp_path / "both" / "train" / f"{number}.png")
        photograph(tmp_path / "plain" / "holidays" / f"{number}.png")
    assert len(unlabelled(model, Source(root=tmp_path / "both"))) == 4
    assert len(unlabelled(model, Source(root=tmp_path / "both", split="val[:50%]"))) == 2
    assert len(unlabelled(model, Source(root=tmp_path / "plain"))) == 4
    with pytest.raises(DataError, match="no split 'test' in it: it has train, validation"):
        unlabelled(model, Source(root=tmp_path / "both", split="test"))


@given(total=st.integers(1, 12), limit=st.integers(1, 14), size=st.integers(1, 5))
def test_a_limit_takes_images_evenly(
    model: nn.Module, tmp_path_factory: pytest.TempPathFactory, total: int, limit: int, size: int
) -> None:
    root = tmp_path_factory.getbasetemp() / f"photos-{total}"
    if not root.exists():
        for number in range(total):
            photograph(root / f"{number}.png", 10 * number)
    some = batches(unlabelled(model, Source(root=root), limit), size)
    shown = brightness(torch.cat(list(some)))
    count = min(total, limit)
    assert shown == [10 * (number * total // count) for number in range(count)]


def test_labels_of_datasets_are_left_out(tmp_path: Path, model: nn.Module) -> None:
    digits = create_model("digits", pretrained=True)
    some = torch.cat(list(batches(unlabelled(digits, Source("digits"), 10), 4)))
    wanted = torch.stack([image for image, _ in labelled(digits, Source("digits"), 10)])
    assert torch.equal(some, wanted)
    folders = pictures(tmp_path / "folders", classes=2, each=3)
    assert unlabelled(model, Source(root=folders))[5].shape == (3, 32, 32)


@pytest.mark.parametrize(("limit", "sizes"), [(None, [4, 2]), (5, [4, 1]), (4, [4]), (9, [4, 2])])
def test_a_stream_stops_at_the_limit(
    monkeypatch: pytest.MonkeyPatch,
    model: nn.Module,
    tmp_path: Path,
    limit: int | None,
    sizes: list[int],
) -> None:
    monkeypatch.chdir(tmp_path)
    shards(tmp_path)
    some = batches(unlabelled(model, Source("wds/any", tmp_path), limit), 4)
    for _ in range(2):
        assert [len(images) for images in some] == sizes


# What cannot be read


def broken(root: Path, count: int, *places: int) -> Path:
    for number in range(count):
        photograph(root / f"{number}.png")
    for place in places:
        (root / f"{place}.png").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_named(model: nn.Module, tmp_path: Path, workers: int) -> None:
    images = unlabelled(model, Source(root=broken(tmp_path / "p", 6, 4)))
    with pytest.raises(DataError) as caught:
        list(batches(images, 2, workers))
    assert str(caught.value) == f"{tmp_path / 'p' / '4.png'} cannot be read: it is no picture"


def test_what_cannot_be_opened_or_is_too_deep_is_named(model: nn.Module, tmp_path: Path) -> None:
    root = broken(tmp_path / "p", 3)
    (root / "3.png").symlink_to(tmp_path / "nowhere")
    Image.fromarray(numpy.full((8, 8), 15000, dtype=numpy.uint16)).save(root / "1.png")
    images = unlabelled(model, Source(root=root))
    assert images[2].shape == (3, 32, 32)
    with pytest.raises(DataError, match=r"1\.png has more than 8 bits a channel"):
        images[1]
    with pytest.raises(DataError, match=r"3\.png cannot be read"):
        images[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_may_be_left_out_with_one_warning(
    model: nn.Module, tmp_path: Path, workers: int
) -> None:
    root = broken(tmp_path / "p", 7, 1, 4, 5)
    some = batches(unlabelled(model, Source(root=root), skip=True), 2, workers)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert [len(images) for images in some] == [1, 2, 1]
    (warning,) = (each for each in caught if each.category is UserWarning)
    assert str(warning.message) == (
        f"{root}: 3 of 7 images left out, the first: {root / '1.png'} cannot be read: it is no "
        "picture"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = unlabelled(model, Source(root=broken(tmp_path / "whole", 3)), skip=True)
        assert sum(map(len, batches(whole, 2))) == 3


def test_all_of_them_are_not_left_out(model: nn.Module, tmp_path: Path) -> None:
    root = broken(tmp_path / "p", 3, 0, 1, 2)
    some = batches(unlabelled(model, Source(root=root), skip=True), 2)
    with pytest.raises(DataError, match=rf"{root}: no image of 3 can be read: .*0\.png cannot"):
        list(some)


@pytest.mark.parametrize("packed", [False, True])
def test_where_no_pictures_are_one_says_what_was_looked_for(
    model: nn.Module, tmp_path: Path, packed: bool
) -> None:
    root = tmp_path / "folder"
    (root / "deeper").mkdir(parents=True)
    (root / "deeper" / "notes.txt").write_text("no picture")
    if packed:
        root = tmp_path / "some.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(tmp_path / "folder", "folder")
    with pytest.raises(DataError) as caught:
        unlabelled(model, Source(root=root))
    assert re.fullmatch(
        rf"{root} has no pictures, in folders below it neither: looked for \.jpeg, \.jpg, \.png",
        str(caught.value),
    )
