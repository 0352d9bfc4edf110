"""Scenes: where they lie, what their labels mean, and their transforms."""

import itertools
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.segment import scenes

from vitfold.errors import DataError
from vitfold.segment import (
    Labels,
    Scenes,
    SceneSource,
    classes_in,
    open_scenes,
)
from vitfold.segment.scenes import annotation_of
from vitfold.segment.transforms import CenterWindow, RandomWindow, WholeScene
from vitfold.tools.answers import IGNORED

HALF = ((0.5,) * 3, (0.5,) * 3)


def test_scenes_lie_in_folders_tars_and_as_ade20k_has_them(tmp_path: Path) -> None:
    scenes(tmp_path / "a" / "val")
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "a" / "val", "./")
    ade = tmp_path / "ade"
    for kind in ("images", "annotations"):
        (ade / kind).mkdir(parents=True)
        (tmp_path / "a" / "val" / kind).rename(ade / kind / "val")
    labels = Labels(2, ignored=9)
    result = [
        open_scenes(tmp_path, "val", labels),
        open_scenes(tmp_path / "val.tar", "train", labels),
        open_scenes(ade, "val", labels),
    ]
    for place in result:
        assert len(place) == 5
        image, label = place[4]
        assert image.shape == (3, 44, 60)
        assert label.shape == (44, 60)
        assert set(label.unique().tolist()) == {IGNORED, 0, 1}
        assert torch.equal(image[0] > 100, label == 1)
    assert classes_in(open_scenes(ade, "val", Labels(100, ignored=9))) == 2
    half = SceneSource(ade, "val[40%:]", labels).open()
    assert len(half) == 3
    path = ade / "images" / "val" / "2.png"
    truth = result[2][2][1]
    assert torch.equal(annotation_of(path, labels), truth)  # type: ignore[arg-type]
    assert annotation_of(tmp_path / "2.png", labels) is None
    beside = ade / "annotations" / "val" / "2.png"
    beside.rename(beside.with_suffix(".PNG"))  # as cameras name them, and `open_scenes` takes them
    assert torch.equal(annotation_of(path, labels), truth)  # type: ignore[arg-type]


def test_zero_may_mean_no_class() -> None:
    raw = Image.fromarray(torch.tensor([[0, 1, 2], [2, 1, 255]], dtype=torch.uint8).numpy())
    read = Labels(2, reduce_zero=True).read(raw, "x.png")
    assert read.tolist() == [[IGNORED, 0, 1], [1, 0, IGNORED]]
    with pytest.raises(DataError, match=r"x\.png: label 2 is beyond 1 classes"):
        Labels(1, reduce_zero=True).read(raw, "x.png")
    with pytest.raises(DataError, match="RGB"):
        Labels(2).read(raw.convert("RGB"), "x.png")


def test_data_that_is_none_is_refused(tmp_path: Path) -> None:
    labels = Labels(2, ignored=9)
    with pytest.raises(DataError, match="no such folder"):
        open_scenes(tmp_path / "no", "val", labels)
    with pytest.raises(DataError, match="annotations"):
        open_scenes(tmp_path, "val", labels)
    scenes(tmp_path / "ade" / "training", 1)
    for kind in ("images", "annotations"):
        (tmp_path / "ade" / kind).mkdir()
        (tmp_path / "ade" / "training" / kind).rename(tmp_path / "ade" / kind / "training")
    with pytest.raises(DataError, match="images/validation"):  # no other split in its place
        open_scenes(tmp_path / "ade", "validation", labels)
    scenes(tmp_path / "two" / "train", 1)
    scenes(tmp_path / "two" / "val", 1)
    with pytest.raises(DataError, match="images/test"):
        open_scenes(tmp_path / "two", "test", labels)
    with tarfile.open(tmp_path / "two.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "two", "./")
    with pytest.raises(DataError, match="several folders"):
        open_scenes(tmp_path / "two.tar.gz", "val", labels)
    whole = (tmp_path / "two.tar.gz").read_bytes()
    (tmp_path / "two.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="tar"):
        open_scenes(tmp_path / "two.tar.gz", "val", labels)
    (tmp_path / "b.tar").write_text("no tar")
    with pytest.raises(DataError, match="tar"):
        open_scenes(tmp_path / "b.tar", "val", labels)
    root = scenes(tmp_path / "s", 1)
    Image.new("L", (10, 10)).save(root / "annotations" / "0.png")
    with pytest.raises(DataError, match="10x10"):
        open_scenes(root, "val", labels)[0]
    (root / "annotations" / "0.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot be read"):
        open_scenes(root, "val", labels)[0]


def test_an_image_without_annotation_is_told_of(tmp_path: Path) -> None:
    root = scenes(tmp_path / "s", 3)
    (root / "annotations" / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"an image has no annotation, images/1\.png"):
        assert len(open_scenes(root, "val", Labels(2, ignored=9))) == 2


def test_what_cannot_be_counted_is_not_guessed(tmp_path: Path) -> None:
    root = scenes(tmp_path / "s", 1)
    wide = torch.zeros(44, 60, dtype=torch.int32)
    wide[0] = 65535
    Image.fromarray(wide.numpy().astype("uint16")).save(root / "annotations" / "0.png")
    with pytest.raises(DataError, match="--ignore-label 65535"):
        classes_in(open_scenes(root, "val", Labels(2**16)))
    assert classes_in(open_scenes(root, "val", Labels(2**16, ignored=65535))) == 1
    Image.new("L", (60, 44), 9).save(root / "annotations" / "0.png")
    with pytest.raises(DataError, match="no pixel has a class"):
        classes_in(open_scenes(root, "val", Labels(2, ignored=9)))


@pytest.mark.parametrize(
    "wrong",
    [{"scale": (0.5,)}, {"scale": (2.0, 0.5)}, {"scale": (float("nan"), 1)}, {"scale": (0, 1)},
     {"flip": 2}, {"jitter": -1}, {"std": (0, 0, 0)}, {"mean": (0.5, 0.5)}],
    ids=str,
)  # fmt: skip
def test_augmentations_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        RandomWindow((32, 32), **{"mean": HALF[0], "std": HALF[1], **wrong})


@pytest.mark.parametrize("size", [(60, 44), (44, 60), (30, 90)])
def test_labels_move_with_their_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    """Bright where class 1 is, dark where 0 is, at every size, place and side."""
    result = open_scenes(scenes(tmp_path / "s", 5, size), "val", Labels(2, ignored=9))
    torch.manual_seed(0)
    transforms = [CenterWindow((32, 32), *HALF), RandomWindow((32, 40), *HALF, jitter=0.1)]
    for transform, number in itertools.product(transforms, range(5)):
        result.transform = transform
        image, labels = result[number]
        assert image.shape[1:] == labels.shape == transform.window
        assert labels.dtype == torch.int64
        known = labels != IGNORED
        right = (image[0] > 0) == (labels == 1)
        assert right[known].float().mean() > 0.9
    assert (labels == IGNORED).any()
    result.transform = WholeScene((32, 32), *HALF)
    image, labels = result[0]
    assert min(image.shape[1:]) == 32
    assert labels.shape == (size[1], size[0])


def test_scenes_are_read_by_many_processes(tmp_path: Path) -> None:
    scenes(tmp_path / "s", 6)
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "s", "./")
    result: Scenes = open_scenes(tmp_path, "val", Labels(2, ignored=9))
    result[0]  # a handle of this process, which others must not share
    loader = torch.utils.data.DataLoader(result, batch_size=None, num_workers=2)
    for (image, labels), (wanted, known) in zip(loader, result, strict=True):
        assert torch.equal(image, wanted)
        assert torch.equal(labels, known)


@pytest.mark.parametrize("fresh", ["val", "validation"])
def test_splits_go_by_the_names_that_others_have(tmp_path: Path, fresh: str) -> None:
    scenes(tmp_path / fresh)
    for name in ("val", "validation", "eval"):
        assert len(open_scenes(tmp_path, name, Labels(2, 9))) == 5
    with pytest.raises(DataError, match=f"and the split; it has {fresh}"):
        open_scenes(tmp_path, "test", Labels(2, 9))
