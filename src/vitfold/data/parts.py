"""Some images of a dataset: parts of a split, an even choice, batches; and what a dataset says."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vitfold.errors import DataError
from vitfold.segment import Scenes


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
        return item(self.whole, self.places[place])


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
    except (RuntimeError, Image.DecompressionBombError) as error:
        if isinstance(error, RuntimeError) and not _unread(error):
            raise
        raise DataError(f"{filename(dataset, place)} cannot be read as an image") from error


def strict(dataset: Any) -> Any:
    """A dataset for what has to be true of all of its images, not of most."""
    files = getattr(dataset, "whole", dataset)
    if not hasattr(files, RETRIES):
        return dataset
    if isinstance(dataset, Part):
        dataset.tries = 1
    setattr(files, RETRIES, 1)
    return Strict(dataset)


RETRIES = "_max_retries"
"""What timm calls how many images it tries, from one on that cannot be read."""


def _unread(error: RuntimeError) -> bool:
    """Whether it is what timm says then."""
    return str(error).startswith("Failed to load")


def filename(dataset: Any, place: int) -> str:
    """Of an image."""
    if isinstance(dataset, Part):
        return filename(dataset.whole, dataset.places[place])
    return str(dataset.filename(place, absolute=True))


def per_cent(whole: Any, low: str | None, high: str | None) -> Part:
    """From `low` to `high` per cent of the images of every class."""
    classes: dict[int, list[int]] = {}
    for place, label in enumerate(_labels(whole)):
        classes.setdefault(label, []).append(place)
    start, stop = int(low or 0), int(high or 100)
    if not 0 <= start < stop <= 100:
        raise DataError(f"a split from {start}% to {stop}%: expected 0 up to 100")
    parts = (c[len(c) * start // 100 : len(c) * stop // 100] for c in classes.values())
    places = sorted(place for part in parts for place in part)
    tries = getattr(whole, RETRIES, 1)
    if tries > 1:
        setattr(whole, RETRIES, 1)  # the next may be of another part
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


def limited(
    batches: Iterable[tuple[Tensor, Tensor]], limit: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `limit` images."""
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
