"""Where labelled images are: folders, tars, datasets by their names in timm, the digits."""

import copy
import functools
import importlib.util
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import timm.data
from PIL import Image
from torch import nn

from vitfold.data import digits
from vitfold.data.inputs import augmentation, preprocessing
from vitfold.data.pictures import check_data_dir, check_depth
from vitfold.data.splits import SPLITS, also, share_of
from vitfold.data.subsets import evenly, filename, numbered, per_cent, strict
from vitfold.errors import DataError, missing, nearest, one_line

LIBRARIES = {
    "": "",
    "torch": "",
    "hfds": "datasets",
    "hfids": "datasets",
    "wds": "webdataset",
    "tfds": "",
    digits.NAME: "",
}
"""What timm's kinds of datasets are read by, where that is an extra; tfds brings TensorFlow, which
is left to the user."""


class AnySource(Protocol):
    """Images and their transforms for a model: `Source`, or that of another task."""

    @property
    def root(self) -> Path | None:
        """The folder or tar that holds the images; None where a name stands for them."""

    @property
    def split(self) -> str:
        """The name of the split."""

    @property
    def is_set(self) -> bool:
        """Whether the source names any images."""

    def prepare(self, model: nn.Module) -> Any:
        """The transform for evaluations during training: all images get one shape."""

    def whole(self, model: nn.Module) -> Any:
        """The transform for an evaluation of its own, in which images may differ in shape."""

    def augment(self, model: nn.Module, options: dict[str, Any]) -> Any:
        """The transform for training, by timm's options."""

    def open(self) -> Any:
        """The dataset; assign one of these transforms to its `transform`."""

    def shares(self, other: Any) -> bool:
        """Whether both sources hold some image in common, under whatever names."""


@dataclass(frozen=True)
class Source:
    """Where labelled images are, in timm's terms.

    dataset: type or name, as `hfds/...`, `wds/...`, `torch/cifar10`; `digits`, which come with
        scikit-learn; empty for a folder or a tar.
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
    def is_set(self) -> bool:
        """Whether the source names any images."""
        return bool(self.dataset or self.root)

    def prepare(self, model: nn.Module) -> Any:
        """The transform of evaluation, from a stored image to `[C, H, W]` as the model takes it."""
        return digits.prepare(model) if self.dataset == digits.NAME else preprocessing(model)

    whole = prepare

    def augment(self, model: nn.Module, options: dict[str, Any]) -> Any:
        """The transform for training, by timm's options."""
        if self.dataset == digits.NAME:
            return digits.augment(model, options)
        return augmentation(model, options)

    def open(self) -> Any:
        """The dataset; images come as they are stored."""
        return self._part(self._labelled)

    def files(self) -> Any:
        """What is in the files of a folder or a tar, as bytes, in the order of their paths. No
        folders of classes are needed."""
        return self._part(functools.partial(self._read, load_bytes=True))

    def shares(self, other: Any) -> bool:
        """Whether both sources hold some image in common, under whatever names."""
        if not isinstance(other, Source):
            return False
        (ours, (low, high)), (theirs, (start, stop)) = self._images(), other._images()
        return ours == theirs and low < stop and start < high

    @property
    def _share(self) -> tuple[str, tuple[int, int] | None]:
        """The split, and the percentages of it; Hugging Face's datasets read such names
        themselves."""
        return (self.split, None) if self.dataset.startswith("hf") else share_of(self.split)

    def _images(self) -> tuple[tuple[Any, ...], tuple[int, int]]:
        """Where the images of the split are, and from which per cent of them to which."""
        name, share = self._share
        if self.dataset == digits.NAME:
            name = digits.split_name(name)
        return (self.dataset, self._place(name), name if self.dataset else ""), share or (0, 100)

    def _part(self, read: Callable[[str], Any]) -> Any:
        """The split, or the share of it that is asked for."""
        name, share = self._share
        whole = read(name)
        return per_cent(whole, *share) if share else whole

    def _labelled(self, split: str) -> Any:
        """A split whose images have labels, as those of a folder may not."""
        dataset = self._read(split)
        if self.dataset:
            return dataset
        if set(numbered(dataset) or "_") <= {"", "."}:
            raise DataError(
                f"{self._place(split)} has images, and no folders of classes: expected CLASS/*.jpg"
            )
        _check_first(dataset)
        return dataset

    def _read(self, split: str, *, load_bytes: bool = False) -> Any:
        if self.dataset == digits.NAME:
            self._check_digits()
            return digits.Digits(split)
        self._check_kind()
        place = self._place(split)
        what = self.dataset or place
        try:
            return timm.data.create_dataset(
                self.dataset,
                root=None if place is None else str(place),
                split=split,
                search_split=bool(self.dataset),
                class_map=self.class_map,
                load_bytes=load_bytes,
            )
        except Exception as error:  # readers raise what they like
            if not self.dataset and place is not None:
                _check_pictures(place)
            if self.dataset and self.root is None:
                what = f"{what}, without --data-dir,"
            raise DataError(f"{what} cannot be read as a dataset: {one_line(error)}") from error

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

    def _check_digits(self) -> None:
        """Refuse what says of the digits where they are, or which number one has."""
        for option, value in (("--data-dir", self.root), ("--class-map", self.class_map)):
            if value:
                raise DataError(
                    f"--dataset {digits.NAME} comes with its images and its labels: leave out "
                    f"{option}"
                )

    def like(self, images: Any) -> "Source":
        """This source with its classes numbered as in these images, whose classes have to include
        them."""
        theirs, ours = numbered(images), numbered(self.open())
        if self.class_map or not theirs or not ours or theirs == ours:
            return self
        if other := sorted(set(ours) - set(theirs)):
            raise DataError(
                f"{self._place(self.split)}: the images of training have no classes "
                f"{', '.join(other[:5])}: give --class-map, or --no-val"
            )
        return replace(self, class_map=theirs)

    def _place(self, split: str) -> Path | None:
        """The folder or the tar of a split. A split that is not there is refused; but a folder
        without any splits is one itself."""
        root = self.root
        if root is None or self.dataset:
            return root
        check_data_dir(root)
        if not root.is_dir():
            return root
        for name in also(split):
            for place in (root / f"{name}.tar", root / name):
                if place.exists():
                    return place
        there = sorted({place.stem for place in root.iterdir()} & SPLITS)
        if there or split not in SPLITS:
            hint = f": it has {', '.join(there)}" if there else ""
            raise DataError(f"--data-dir {root}: there is no split {split!r} in it{hint}")
        return root


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
    """A dataset for an evaluation: all of its images, and labels of pixels as fine as they are."""
    dataset = strict(source.open())
    dataset.transform = source.whole(model)
    return dataset


def _check_pictures(place: Path) -> None:
    """Refuse a folder or a tar without any file that is called as pictures are."""
    try:
        names = place.rglob("*") if place.is_dir() else map(Path, _members(place))
        suffixes = {name.suffix.lower() for name in names}
    except (OSError, tarfile.TarError):  # what cannot be listed may have some
        return
    if not suffixes & (known := set(timm.data.readers.get_img_extensions())):
        raise DataError(
            f"{place} has no pictures, in folders below it neither: looked for "
            f"{', '.join(sorted(known))}"
        )


def _members(tar: Path) -> list[str]:
    with tarfile.open(tar) as members:
        return members.getnames()


def _check_first(dataset: Any) -> None:
    """Refuse pictures that timm would make white, by the first of them that can be read."""
    # What a tar's reader has opened here would be shared by all processes that read.
    reader = copy.deepcopy(dataset.reader)
    for place in range(min(len(dataset), FEW)):
        try:
            picture = Image.open(reader[place][0])
        except (OSError, ValueError, Image.DecompressionBombError):  # reading it says so
            continue
        check_depth(picture, filename(dataset, place))
        return


FEW = 10
"""How many pictures `_check_first` tries."""
