"""Images for a model: its own preprocessing, and where labelled ones come from."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm.data
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vitfold import processor
from vitfold.digits import Digit, Digits
from vitfold.errors import DataError, one_line
from vitfold.families import find
from vitfold.segment import SPLITS, Labels, Scenes, also, open_scenes
from vitfold.segment.looks import SCALE, Augment, Look, Window
from vitfold.segment.scenes import check_depth

Prepare = Callable[[Image.Image], Tensor]

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
        return _part(whole, part["low"], part["high"]) if part else whole

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
            why = one_line(error)
            if self.dataset and self.root is None:
                what, why = f"{what}, without --data-dir,", f"{why}; give hfds/..., torch/..., ..."
            raise DataError(f"{what} cannot be read as a dataset: {why}") from error
        if not self.dataset and set(numbered(dataset) or "_") <= {"", "."}:
            raise DataError(f"{what} has images, and no folders of classes: expected CLASS/*.jpg")
        if not self.dataset:
            _check_first(dataset)
        return dataset

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
        return Window(*_look(model))

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
        return Augment(*_look(model), scale, flip, jitter)

    def open(self) -> Any:
        """The scenes; pictures come as they are stored."""
        part = PART.fullmatch(self.split)
        scenes = open_scenes(self.root, part["name"] if part else self.split, self.labels)
        return _part(scenes, part["low"], part["high"]) if part else scenes

    def shares(self, other: "AnySource") -> bool:
        """Whether both read some scene, under whatever names."""
        return isinstance(other, SceneSource) and bool(self._scenes() & other._scenes())

    def _scenes(self) -> set[tuple[Any, ...]]:
        opened = self.open()
        whole = getattr(opened, "whole", opened)
        places = getattr(opened, "places", range(len(whole)))
        return {(whole.place.root, *whole.pairs[place]) for place in places}


def scene_look(model: nn.Module) -> Look:
    """From a photograph of any size to images for windows to slide over."""
    return Look(*_look(model))


def _look(model: nn.Module) -> tuple[tuple[int, int], Sequence[float], Sequence[float]]:
    """The window of a segmenter, and the channels that it expects."""
    config = data_config(model)
    if config["input_size"][0] != 3:
        raise DataError(f"the model takes {config['input_size'][0]} channels: photographs have 3")
    return tuple(config["input_size"][1:]), config["mean"], config["std"]


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

    def augment(self, _model: nn.Module, _options: dict[str, Any]) -> Callable[[Digit], Tensor]:
        """The same at another place, size and angle; no other change leaves digits as they are."""
        return Digit.anew

    def open(self) -> Digits:
        """The dataset."""
        return Digits(self.split)

    def shares(self, other: "AnySource") -> bool:
        """Whether both read the same digits."""
        return self == other


AnySource = Source | SceneSource | DigitsSource


class Part(Dataset[Any]):
    """Some images of a dataset.

    tries: where one cannot be read, how many of them to try, from that on.
    """

    def __init__(self, whole: Any, places: Sequence[int], tries: int = 1) -> None:
        self.whole = whole
        self.places = places
        self.tries = tries

    @property
    def transform(self) -> Any:
        """What images go through."""
        return self.whole.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.whole.transform = transform

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Any:
        for _ in range(1, self.tries):
            try:
                return self.whole[self.places[place]]
            except RuntimeError as error:
                if not _unread(error):
                    raise
            place = (place + 1) % len(self)
        return self.whole[self.places[place]]


class Strict(Part):
    """The same images, of which one that cannot be read is an error; in training timm takes its
    neighbour instead."""

    def __init__(self, whole: Any) -> None:
        super().__init__(whole, range(len(whole)))

    def __getitem__(self, place: int) -> Any:
        return item(self.whole, place)


def item(dataset: Any, place: int) -> Any:
    """An image with its label; an error that names the file where timm has given up."""
    try:
        return dataset[place]
    except RuntimeError as error:
        if not _unread(error):
            raise
        raise DataError(f"{filename(dataset, place)} cannot be read as an image") from error


def strict(dataset: Any) -> Any:
    """A dataset for what has to be true of all of its images, not of most."""
    files = getattr(dataset, "whole", dataset)
    if not hasattr(files, TRIES):
        return dataset
    if isinstance(dataset, Part):
        dataset.tries = 1
    setattr(files, TRIES, 1)
    return Strict(dataset)


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

TRIES = "_max_retries"
"""What timm calls how many images it tries, from one on that cannot be read."""


def _unread(error: RuntimeError) -> bool:
    """Whether it is what timm says then."""
    return str(error).startswith("Failed to load")


def filename(dataset: Any, place: int) -> str:
    """Of an image."""
    if isinstance(dataset, Part):
        return filename(dataset.whole, dataset.places[place])
    return str(dataset.filename(place, absolute=True))


def _part(whole: Any, low: str | None, high: str | None) -> Part:
    """From `low` to `high` per cent of the images of every class."""
    classes: dict[int, list[int]] = {}
    for place, label in enumerate(_labels(whole)):
        classes.setdefault(label, []).append(place)
    start, stop = int(low or 0), int(high or 100)
    if not 0 <= start < stop <= 100:
        raise DataError(f"a split from {start}% to {stop}%: expected 0 up to 100")
    parts = (c[len(c) * start // 100 : len(c) * stop // 100] for c in classes.values())
    places = sorted(place for part in parts for place in part)
    tries = getattr(whole, TRIES, 1)
    if tries > 1:
        setattr(whole, TRIES, 1)  # the next may be of another part
    return Part(whole, places, tries)


def _labels(whole: Any) -> list[int]:
    """The labels of a dataset, without reading its images; scenes have none in common."""
    if isinstance(whole, Scenes):
        return [0] * len(whole)
    reader = getattr(whole, "reader", whole)
    targets = getattr(reader, "targets", None)
    if targets is None and hasattr(reader, "samples"):
        targets = [label for _, label in reader.samples]
    if targets is None:
        raise DataError("only folders and tars can be split by per cent: give a whole split")
    return [int(label) for label in targets]


def numbered(dataset: Any) -> dict[str, int] | None:
    """The numbers of the classes of a dataset by their names, where it says so."""
    while isinstance(dataset, Part):
        dataset = dataset.whole
    reader = getattr(dataset, "reader", dataset)
    return getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)


def classes_of(dataset: Any) -> int | None:
    """How many classes a dataset says that it has."""
    index = numbered(dataset)
    return len(set(index.values())) if index else None


def data_config(model: nn.Module) -> dict[str, Any]:
    """Size, interpolation, mean and deviation, crop: what the model expects."""
    found = find(model)
    said = processor.of(getattr(found.trunk, "config", None))
    given = processor.translated(said) if said else {}
    config: dict[str, Any] = timm.data.resolve_data_config(given, model=found.trunk)
    channels = {name: tuple(config[name])[: found.size[0]] for name in ("mean", "std")}
    return config | channels | {"input_size": found.size}


class Renormalized(nn.Module):
    """A model on images that are prepared for another."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.model = model
        ours, theirs = ({n: torch.tensor(data_config(m)[n]) for n in ("mean", "std")}
                        for m in (model, other))  # fmt: skip
        self.register_buffer("scale", (theirs["std"] / ours["std"])[:, None, None])
        shift = (theirs["mean"] - ours["mean"]) / ours["std"]
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor) -> Any:
        """What the model says of the images as it wants them."""
        return self.model((x * self.scale + self.shift).to(x.dtype))


def renormalized(model: nn.Module, other: nn.Module) -> nn.Module:
    """The model for images that are prepared for another; itself where it wants them alike."""
    ours, theirs = data_config(model), data_config(other)
    alike = all(tuple(ours[name]) == tuple(theirs[name]) for name in ("mean", "std"))
    return model if alike else Renormalized(model, other).to(next(model.parameters()).device)


def preprocessing(model: nn.Module) -> Prepare:
    """From a picture to the model's input."""
    return _transform(data_config(model), is_training=False)


def _transform(config: dict[str, Any], **options: Any) -> Prepare:
    """timm's transform; for a model of one channel, of grey pictures."""
    channels = config["input_size"][0]
    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels: pictures have 1 or 3")
    if min(config["std"]) <= 0:
        raise DataError(f"std={list(config['std'])}: expected numbers above 0")
    transform: Prepare = timm.data.create_transform(**config, **options)
    if not callable(transform):
        raise DataError("expected options that make one transform of all")
    return transform if channels == 3 else lambda picture: transform(picture.convert("L"))


def augmentation(model: nn.Module, options: dict[str, Any]) -> Prepare:
    """From a picture to the model's input, in one of many ways."""
    config = data_config(model) | options
    try:
        return _transform(config, is_training=True)
    except Exception as error:
        raise DataError(f"augmentation {options}: {one_line(error)}") from error


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


def evenly(dataset: Any, limit: int | None) -> Any:
    """That many of its images, evenly spaced; a stream comes whole."""
    if limit is None or streams(dataset) or limit >= len(dataset):
        return dataset
    return Part(dataset, [number * len(dataset) // limit for number in range(limit)])


def shuffled(dataset: Any, seed: int, limit: int) -> Part:
    """Its images in an order that the seed decides, the first `limit` of them."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Part(dataset, order[:limit].tolist())


def streams(dataset: Any) -> bool:
    """Whether images come in an order of their own, as WebDataset reads them."""
    whole = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return isinstance(dataset, IterableDataset) or not whole


def loader(dataset: Any, batch_size: int, workers: int) -> Any:
    """Batches of labelled images."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)
