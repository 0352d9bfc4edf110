"""Subsets of a dataset (a share of every class, evenly spaced, shuffled), batches, and class
numbers."""

import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vitfold.errors import DataError


class Subset(Dataset[Any]):
    """The images of a dataset at some places, in that order.

    tries: how many images to try, from one on that cannot be read.
    """

    def __init__(self, whole: Any, places: Sequence[int], tries: int = 1) -> None:
        self.whole = whole
        self.places = places
        self.tries = tries

    @property
    def transform(self) -> Any:
        """The transform of the whole dataset."""
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
        return item(self.whole, self.places[place])


class Strict(Subset):
    """A dataset in which an image that cannot be read is an error; in training timm takes its
    neighbour instead."""

    def __init__(self, whole: Any) -> None:
        super().__init__(whole, range(len(whole)))

    def __getitem__(self, place: int) -> Any:
        return item(self.whole, place)


def item(dataset: Any, place: int) -> Any:
    """An image with its label; an error that names the file where timm has given up."""
    try:
        return dataset[place]
    except (RuntimeError, *BROKEN) as error:
        if isinstance(error, RuntimeError) and not _unread(error):
            raise
        raise DataError(f"{filename(dataset, place)} cannot be read as an image") from error


BROKEN = (
    Image.DecompressionBombError, OSError, SyntaxError, EOFError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises for pictures that it cannot read; timm expects an OSError alone."""


def strict(dataset: Any) -> Any:
    """The dataset made `Strict`: an evaluation covers all images."""
    files = getattr(dataset, "whole", dataset)
    if not hasattr(files, RETRIES):
        return dataset
    if isinstance(dataset, Subset):
        dataset.tries = 1
    setattr(files, RETRIES, 1)
    return Strict(dataset)


RETRIES = "_max_retries"
"""What timm calls how many images it tries, from one on that cannot be read."""


def _unread(error: RuntimeError) -> bool:
    """Whether it is timm's error for images that cannot be read."""
    return str(error).startswith("Failed to load")


def filename(dataset: Any, place: int) -> str:
    """The path of an image of a dataset; in a tar, that of the tar first."""
    if isinstance(dataset, Subset):
        return filename(dataset.whole, dataset.places[place])
    name = str(dataset.filename(place, absolute=True))
    root = getattr(getattr(dataset, "reader", None), "root", None)
    return f"{root}: {name}" if root and Path(root).is_file() else name


def per_cent(whole: Any, start: int, stop: int) -> Subset:
    """From `start` to `stop` per cent of the images of every class."""
    classes: dict[int, list[int]] = {}
    for place, label in enumerate(_labels(whole)):
        classes.setdefault(label, []).append(place)
    if not 0 <= start < stop <= 100:
        raise DataError(f"a split from {start}% to {stop}%: expected 0 up to 100")
    shares = (c[len(c) * start // 100 : len(c) * stop // 100] for c in classes.values())
    places = sorted(place for share in shares for place in share)
    tries = getattr(whole, RETRIES, 1)
    if tries > 1:
        setattr(whole, RETRIES, 1)  # the next may be of another share
    return Subset(whole, places, tries)


def _labels(whole: Any) -> list[int]:
    """The labels of a dataset's images, without reading these."""
    reader = getattr(whole, "reader", whole)
    targets = getattr(reader, "targets", None)
    if targets is None and hasattr(reader, "samples"):
        targets = [label for _, label in reader.samples]
    if targets is None:
        raise DataError("only folders and tars can be split by per cent: give a whole split")
    return [int(label) for label in targets]


def numbered(dataset: Any) -> dict[str, int] | None:
    """The class numbers of a dataset by class name; None where it states none."""
    while isinstance(dataset, Subset):
        dataset = dataset.whole
    reader = getattr(dataset, "reader", dataset)
    return getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)


def classes_of(dataset: Any) -> int | None:
    """How many classes a dataset has; None where it does not say so."""
    index = numbered(dataset)
    return len(set(index.values())) if index else None


def evenly(dataset: Any, limit: int | None) -> Any:
    """So many images of a dataset, evenly spaced; a stream comes whole."""
    if limit is None or streams(dataset) or limit >= len(dataset):
        return dataset
    return Subset(dataset, [number * len(dataset) // limit for number in range(limit)])


def shuffled(dataset: Any, seed: int, limit: int) -> Subset:
    """The images of a dataset in an order that the seed decides, the first `limit` of them."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:limit].tolist())


def streams(dataset: Any) -> bool:
    """Whether a dataset has an order of its own, as those that WebDataset reads."""
    whole = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return isinstance(dataset, IterableDataset) or not whole


def limited(
    batches: Iterable[tuple[Tensor, Tensor]], limit: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `limit` images of a dataset."""
    left = math.inf if limit is None else limit
    for images, labels in batches:
        if left <= 0:
            return
        keep = int(min(left, len(labels)))
        yield images[:keep], labels[:keep]
        left -= keep


def loader(dataset: Any, batch_size: int, workers: int) -> Any:
    """Batches of labelled images."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)
