"""Where labelled images are: in folders, tars and datasets, or drawn."""

import copy
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm.data
from PIL import Image
from torch import Tensor, nn

from vitfold.data.digits import Digit, Digits
from vitfold.data.looks import Prepare, augmentation, preprocessing, scene_look, scene_traits
from vitfold.data.parts import evenly, filename, numbered, per_cent, strict
from vitfold.errors import DataError, missing, nearest, one_line
from vitfold.segment import SPLITS, Labels, also, open_scenes
from vitfold.segment.looks import SCALE, Augment, Look, Window
from vitfold.segment.scenes import check_depth

LIBRARIES = {
    "": "",
    "torch": "",
    "hfds": "datasets",
    "hfids": "datasets",
    "wds": "webdataset",
    "tfds": "",
}
"""What timm's kinds of datasets are read by, where that is an extra; tfds brings TensorFlow, which
is left to the user."""

PART = re.compile(r"(?P<name>.+)\[(?:(?P<low>\d{1,3})%)?:(?:(?P<high>\d{1,3})%)?\]")
"""The name of a split with the share of it that is meant."""


@dataclass(frozen=True)
class Source:
    """Where labelled images are, in timm's terms.

    dataset: type or name, as `hfds/...`, `wds/...`, `torch/cifar10`; empty for a folder or a tar.
    root: the folder or the tar. In a folder, a split is a folder or a tar of its name; where there
        is none of any split, the folder is the split itself.
    split: validation, test, ...; `train[:90%]` is the first nine tenths of every class (but Hugging
        Face's datasets read such a name in their own way).
    class_map: a file that maps class names to labels, or what is in it.
    """

    dataset: str = ""
    root: Path | None = None
    split: str = "validation"
    class_map: str | dict[str, int] = ""

    @property
    def given(self) -> bool:
        """Whether it says where images are."""
        return bool(self.dataset or self.root)

    def prepare(self, model: nn.Module) -> Prepare:
        """What makes an image of a picture."""
        return preprocessing(model)

    whole = prepare

    def augment(self, model: nn.Module, options: dict[str, Any]) -> Prepare:
        """The same in one of many ways, by timm's options."""
        return augmentation(model, options)

    def open(self) -> Any:
        """The dataset; images come as they are stored."""
        part = self._part
        whole = self._read(part["name"] if part else self.split)
        return per_cent(whole, part["low"], part["high"]) if part else whole

    def shares(self, other: "AnySource") -> bool:
        """Whether both read some image, under whatever names."""
        if not isinstance(other, Source):
            return False
        (place, ours), (theirs, part) = self._images(), other._images()
        return place == theirs and ours[0] < part[1] and part[0] < ours[1]

    @property
    def _part(self) -> re.Match[str] | None:
        return None if self.dataset.startswith("hf") else PART.fullmatch(self.split)

    def _images(self) -> tuple[tuple[Any, ...], tuple[int, int]]:
        """Where they are, and from which per cent to which."""
        part = self._part
        name = part["name"] if part else self.split
        share = (int(part["low"] or 0), int(part["high"] or 100)) if part else (0, 100)
        return (self.dataset, self._place(name), name if self.dataset else ""), share

    def _read(self, split: str) -> Any:
        self._check_kind()
        place = self._place(split)
        what = self.dataset or place
        try:
            dataset = timm.data.create_dataset(
                self.dataset,
                root=None if place is None else str(place),
                split=split,
                search_split=bool(self.dataset),
                class_map=self.class_map,
            )
        except Exception as error:  # readers raise what they like
            if self.dataset and self.root is None:
                what = f"{what}, without --data-dir,"
            raise DataError(f"{what} cannot be read as a dataset: {one_line(error)}") from error
        if not self.dataset and set(numbered(dataset) or "_") <= {"", "."}:
            raise DataError(f"{what} has images, and no folders of classes: expected CLASS/*.jpg")
        if not self.dataset:
            _check_first(dataset)
        return dataset

    def _check_kind(self) -> None:
        """Refuse a dataset of a kind that timm does not know, which it takes for a folder, or whose
        library is not there."""
        kind = self.dataset.partition("/")[0].lower() if "/" in self.dataset else self.dataset
        if kind not in LIBRARIES:
            raise DataError(
                f"--dataset {self.dataset!r}{nearest(kind, [k for k in LIBRARIES if k])}: expected "
                "KIND/NAME, or --data-dir alone"
            )
        library = LIBRARIES[kind]
        if library and importlib.util.find_spec(library) is None:
            raise missing(library, "data")

    def like(self, images: Any) -> "Source":
        """The same with classes numbered as in these images, of which they are some."""
        known, ours = numbered(images), numbered(self.open())
        if self.class_map or not known or not ours or known == ours:
            return self
        if other := sorted(set(ours) - set(known)):
            raise DataError(
                f"{self._place(self.split)}: the images of training have no classes "
                f"{', '.join(other[:5])}: give --class-map, or --no-val"
            )
        return replace(self, class_map=known)

    def _place(self, split: str) -> Path | None:
        """The folder or the tar of a split. A split that is not there is refused; but a folder
        without any splits is one itself."""
        root = self.root
        if root is None or self.dataset or root.is_file():
            return root
        if not root.is_dir():
            raise DataError(f"--data-dir {root}: there is no such folder or file")
        for name in also(split):
            for place in (root / f"{name}.tar", root / name):
                if place.exists():
                    return place
        there = sorted({place.stem for place in root.iterdir()} & SPLITS)
        if there or split not in SPLITS:
            known = f": it has {', '.join(there)}" if there else ""
            raise DataError(f"--data-dir {root}: there is no split {split!r} in it{known}")
        return root


@dataclass(frozen=True)
class SceneSource:
    """Where images with a class for every pixel are.

    root, split: as `segment.open_scenes` takes them; `train[:90%]` is the first nine tenths.
    """

    root: Path
    split: str
    labels: Labels
    given: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> Window:
        """What makes a window of a picture."""
        return Window(*scene_traits(model))

    def whole(self, model: nn.Module) -> Look:
        """What makes an image of a picture, whose labels stay as they are."""
        return scene_look(model)

    def augment(self, model: nn.Module, options: dict[str, Any]) -> Window | Augment:
        """Windows in one of many ways: what timm's options mean where labels move too."""
        given = {name: value for name, value in options.items() if value}
        if given.pop("no_aug", False):
            return self.prepare(model)
        scale = given.pop("scale", SCALE)
        flip, jitter = given.pop("hflip", 0.0), given.pop("color_jitter", 0.0)
        if given:
            raise DataError(f"{', '.join(given)}: only images of one class are changed so")
        return Augment(*scene_traits(model), scale, flip, jitter)

    def open(self) -> Any:
        """The scenes; pictures come as they are stored."""
        part = PART.fullmatch(self.split)
        scenes = open_scenes(self.root, part["name"] if part else self.split, self.labels)
        return per_cent(scenes, part["low"], part["high"]) if part else scenes

    def shares(self, other: "AnySource") -> bool:
        """Whether both read some scene, under whatever names."""
        return isinstance(other, SceneSource) and bool(self._scenes() & other._scenes())

    def _scenes(self) -> set[tuple[Any, ...]]:
        opened = self.open()
        whole = getattr(opened, "whole", opened)
        places = getattr(opened, "places", range(len(whole)))
        return {(whole.place.root, *whole.pairs[place]) for place in places}


@dataclass(frozen=True)
class DigitsSource:
    """The digits that the embedded model reads; they come as it takes them."""

    split: Literal["train", "test"]
    given: ClassVar[bool] = True
    root: ClassVar[None] = None

    def prepare(self, _model: nn.Module) -> Callable[[Digit], Tensor]:
        """What makes an image of a digit."""
        return attrgetter("placed")

    whole = prepare

    def augment(self, model: nn.Module, options: dict[str, Any]) -> Callable[[Digit], Tensor]:
        """The same at another place, size and angle; digits are not mirrored and have no colour."""
        given = {name: value for name, value in options.items() if value}
        if given.pop("no_aug", False):
            return self.prepare(model)
        if others := given.keys() - {"hflip", "color_jitter"}:
            raise DataError(f"{', '.join(sorted(others))}: the model's own digits take only no_aug")
        return Digit.anew

    def open(self) -> Digits:
        """The dataset."""
        return Digits(self.split)

    def shares(self, other: "AnySource") -> bool:
        """Whether both read the same digits."""
        return self == other


AnySource = Source | SceneSource | DigitsSource


def labelled(
    model: nn.Module, source: AnySource, limit: int | None = None, *, skip: bool = False
) -> Any:
    """A dataset of labelled images as the model expects them.

    limit: take that many, evenly spaced: folders list one class after another. A stream comes
        whole.
    skip: in place of an image that cannot be read take its neighbour, as in training.
    """
    dataset = source.open() if skip else strict(source.open())
    dataset.transform = source.prepare(model)
    return evenly(dataset, limit)


def untouched(model: nn.Module, source: AnySource) -> Any:
    """The same, but scenes whole and with their labels as they are: what an evaluation looks at."""
    dataset = strict(source.open())
    dataset.transform = source.whole(model)
    return dataset


def _check_first(dataset: Any) -> None:
    """Refuse pictures that timm would make white, by the first of them that can be read."""
    # What a tar's reader has opened here would be shared by all processes that read.
    reader = copy.deepcopy(dataset.reader)
    for place in range(min(len(dataset), FEW)):
        try:
            picture = Image.open(reader[place][0])
        except (OSError, ValueError, Image.DecompressionBombError):  # it is broken
            continue
        check_depth(picture, filename(dataset, place))
        return


FEW = 10
"""How many pictures to try for one that can be read."""
