"""Scenes: photographs with a class for every pixel, and how their annotations are read."""

import os
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from vitfold.data.pictures import check_data_dir, check_depth, read_picture
from vitfold.data.splits import SPLITS, also
from vitfold.errors import DataError, one_line
from vitfold.tools.answers import IGNORED
from vitfold.tools.measure import Progress

IMAGES, ANNOTATIONS = "images", "annotations"

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

PLAUSIBLE = 4096
"""More classes than that are none that somebody drew."""

VOID = 255
"""What annotations call a pixel of no class, where nobody says otherwise."""

Example = tuple[Tensor, Tensor]

Transform = Callable[[Image.Image, Tensor], Example]


@dataclass(frozen=True)
class Labels:
    """What the numbers in annotations mean.

    classes: how many there are, numbered from 0.
    ignored: the number of pixels that have none.
    reduce_zero: 0 has no class either, and the classes are numbered from 1, as ADE20K's are.
    """

    classes: int
    ignored: int = VOID
    reduce_zero: bool = False

    def read(self, annotation: Image.Image, name: str) -> Tensor:
        """`[H, W]`: classes, and IGNORED for what has none."""
        raw: Tensor = pil_to_tensor(annotation)
        if len(raw) != 1:
            raise DataError(f"{name}: expected one number a pixel, got {annotation.mode} colours")
        labels, void = raw[0].long(), raw[0] == self.ignored
        if self.reduce_zero:
            labels, void = labels - 1, void | (raw[0] == 0)
        labels = labels.masked_fill(void, IGNORED)
        if len(raw[0]) and int(labels.max()) >= self.classes:
            most = int(labels.max()) + self.reduce_zero
            raise DataError(
                f"{name}: label {most} is beyond {self.classes} classes: give --ignore-label "
                f"{most} where it means none, --reduce-zero-label where classes begin at 1, or "
                "another --num-classes"
            )
        return labels


def classes_in(scenes: "Scenes", progress: Progress = lambda: None) -> int:
    """How many classes annotations have: one more than the highest number in them."""
    most = -1
    for number in range(len(scenes)):
        most = max(most, int(scenes[number][1].max()))
        progress()
    if most < 0:
        raise DataError(f"no pixel has a class: is --ignore-label {scenes.labels.ignored} right?")
    if most > PLAUSIBLE:
        raise DataError(
            f"label {most} in the annotations: give --ignore-label {most} where it means none, or "
            "--num-classes"
        )
    return most + 1


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        """The paths of all files, relative to the folder."""
        return (path.relative_to(self.root).as_posix() for path in self.root.rglob("*"))

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        return (self.root / name).read_bytes()


class Archive:
    """Files in a tar. Every process reads through a handle of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = 0
        with tarfile.open(root) as tar:
            self.members = {m.name.removeprefix("./"): m for m in tar if m.isfile()}

    def names(self) -> Iterator[str]:
        """The paths of all files in the tar."""
        return iter(self.members)

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        if self.process != os.getpid():
            self.tar, self.process = tarfile.open(self.root), os.getpid()  # noqa: SIM115
        file = self.tar.extractfile(self.members[name])
        assert file is not None  # members are files
        return file.read()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "members": self.members, "process": 0}


class Scenes(Dataset[Any]):
    """Images with their annotations.

    place: where files are.
    pairs: names of an image and of its annotation.
    transform: what both go through; None: images come as `[3, H, W]` in 0 to 255.
    """

    def __init__(
        self, place: Folder | Archive, pairs: list[tuple[str, str]], labels: Labels
    ) -> None:
        self.place, self.pairs, self.labels = place, pairs, labels
        self.transform: Transform | None = None

    @property
    def targets(self) -> list[int]:
        """One label for all: a share of the scenes is one of them all, not of every class."""
        return [0] * len(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Example:
        image, annotation = self.pairs[number]
        stored = _opened(self.place, image)
        check_depth(stored, image)
        picture = stored.convert("RGB")
        labels = self.labels.read(_opened(self.place, annotation), annotation)
        check_size(labels, picture, annotation)
        return self.transform(picture, labels) if self.transform else (_raw(picture), labels)


def annotation_of(image: Path, labels: Labels) -> Tensor | None:
    """The labels of an image in images/, where they lie in annotations/ beside that."""
    parts = list(image.parts)
    if IMAGES not in parts[:-1]:
        return None
    parts[len(parts) - 1 - parts[::-1].index(IMAGES)] = ANNOTATIONS
    folder = Path(*parts[:-1])
    names = [image.stem + ending for suffix in PICTURES for ending in (suffix, suffix.upper())]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        return None
    return labels.read(_opened(Folder(folder), name), str(folder / name))


def _opened(place: Folder | Archive, name: str) -> Image.Image:
    try:
        stored = place.read(name)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{name} cannot be read: {one_line(error)}") from error
    return read_picture(stored, name)


def check_size(labels: Tensor, picture: Image.Image, name: str) -> None:
    """Refuse an annotation whose size is not that of its picture."""
    if labels.shape != (picture.height, picture.width):
        shape = "x".join(map(str, labels.shape))
        raise DataError(
            f"{name} is {shape}, its image {picture.height}x{picture.width}: expected one label a "
            "pixel"
        )


def _raw(picture: Image.Image) -> Tensor:
    pixels: Tensor = pil_to_tensor(picture)
    return pixels


def open_scenes(root: Path, split: str, labels: Labels) -> Scenes:
    """The scenes of a split: `images` and `annotations` in a folder or a tar of its name, or in
    `root` itself; or folders of its name in those two, as ADE20K has them."""
    check_data_dir(root)
    place = _place(root, split)
    names = [PurePosixPath(name) for name in sorted(place.names())]
    deep = isinstance(place, Archive)
    below = [(name,) for name in also(split)]
    pairs = next(filter(None, (_pairs(names, folder, deep) for folder in [*below, ()])), None)
    if not pairs:
        there = sorted({path.stem for path in root.iterdir()} & SPLITS) if root.is_dir() else []
        hint = f"; it has {', '.join(there)}" if there else ""
        raise DataError(
            f"{place.root} has no {IMAGES}/*.jpg with {ANNOTATIONS}/*.png of the same names, nor "
            f"such in {IMAGES}/{split} and {ANNOTATIONS}/{split}: give --data-dir, and the split"
            f"{hint}"
        )
    return Scenes(place, pairs, labels)


def _place(root: Path, split: str) -> Folder | Archive:
    """The files of a split: a folder or a tar."""
    if root.is_file():
        return _archive(root)
    for name in also(split):
        if (root / f"{name}.tar").is_file():
            return _archive(root / f"{name}.tar")
        if (root / name / IMAGES).is_dir():
            return Folder(root / name)
    return Folder(root)


def _archive(path: Path) -> Archive:
    try:
        return Archive(path)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read as a tar: {one_line(error)}") from error


def _pairs(
    names: Sequence[PurePosixPath], below: tuple[str, ...], deep: bool
) -> list[tuple[str, str]]:
    """Images right below `images` and that, with the annotations of the same names, in order.

    deep: `images` may lie in a folder, as in archives.
    """
    annotations = _keyed(names, (ANNOTATIONS, *below), deep)
    images = _keyed(names, (IMAGES, *below), deep)
    pairs = [(str(images[key]), str(annotations[key])) for key in images if key in annotations]
    if pairs and len({key[:-1] for key in images}) > 1:
        raise DataError("several folders of images in one archive: give one of a single split")
    alone = [str(name) for key, name in images.items() if key not in annotations]
    if pairs and alone:
        some = f"{len(alone)} images have" if len(alone) > 1 else "an image has"
        warnings.warn(f"{some} no annotation, {alone[0]} first: left out", stacklevel=3)
    return pairs


def _keyed(
    names: Sequence[PurePosixPath], ends: tuple[str, ...], deep: bool
) -> dict[tuple[str, ...], PurePosixPath]:
    """Pictures in folders that end so, by what an image and its annotation have in common."""
    pictures = {}
    for name in names:
        folder = name.parent.parts
        inside = folder[len(folder) - len(ends) :] == ends and (deep or folder == ends)
        if inside and name.suffix.lower() in PICTURES:
            pictures[(*folder[: len(folder) - len(ends)], name.stem)] = name
    return pictures
