"""Parts of splits, and classes that two splits have in common."""

from pathlib import Path

import pytest
from PIL import Image
from support.cli import pictures

from vitfold.data import Source
from vitfold.errors import DataError


def test_parts_of_a_split_share_out_every_class(tmp_path: Path) -> None:
    root = pictures(tmp_path / "train", classes=3, each=10)
    low, high = (Source("", tmp_path, f"train[{part}]").open() for part in (":70%", "70%:"))
    assert (len(low), len(high)) == (21, 9)
    assert sorted([*low.places, *high.places]) == list(range(30))
    for part, each in ((low, 7), (high, 3)):
        labels = [part[place][1] for place in range(len(part))]
        assert [labels.count(label) for label in range(3)] == [each] * 3
    with pytest.raises(DataError, match="from 90% to 20%"):
        Source("", root, "train[90%:20%]").open()


def test_held_out_classes_are_numbered_as_those_of_training(tmp_path: Path) -> None:
    for split, names in {"train": "abc", "val": "bc", "test": "bz"}.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    images = Source(root=tmp_path, split="train").open()
    held_out = Source(root=tmp_path, split="val")
    assert [label for _, label in held_out.like(images).open()] == [1, 2]
    assert Source(root=tmp_path, split="train").like(images).class_map == ""
    with pytest.raises(DataError, match="training have no classes z: give --class-map"):
        Source(root=tmp_path, split="test").like(images)
