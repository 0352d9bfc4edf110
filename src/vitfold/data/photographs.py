"""Images without labels: the photographs of a folder or a tar, and those of labelled data."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vitfold.data.inputs import Prepare
from vitfold.data.pictures import check_depth, read_picture
from vitfold.data.sources import AnySource, Source
from vitfold.data.subsets import Subset, evenly, filename, item, streams, strict
from vitfold.errors import DataError


class Unread(NamedTuple):
    """Stands in for an image that cannot be read, where such are left out.

    reason: names the file.
    """

    reason: str


class Photographs(Dataset[Any]):
    """Images as a model takes them, each `[C, H, W]`, without labels.

    whole: the same with labels.
    name: of their place, for errors.
    skip: an image that cannot be read comes as `Unread`, which `batches` leaves out; otherwise it
        is an error.
    """

    def __init__(self, whole: Any, name: str, skip: bool = False) -> None:
        self.whole, self.name, self.skip = whole, name, skip

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, place: int) -> Tensor | Unread:
        try:
            image: Tensor = item(self.whole, place)[0]
        except DataError as error:
            if not self.skip:
                raise
            return Unread(str(error))
        return image


class PhotographStream(IterableDataset[Any]):
    """The same of a dataset with an order of its own.

    limit: `batches` ends after so many.
    """

    def __init__(self, whole: Any, limit: int | None = None) -> None:
        self.whole, self.limit = whole, limit

    def __iter__(self) -> Iterator[Tensor]:
        return (image for image, _ in self.whole)


class Pictures(Subset):
    """The pictures of files, prepared: each is checked, and errors name it and say why.

    They are taken as they are stored, as labelled ones are: a turn that a camera notes is not
    made, so that figures are of the same pixels with labels and without.
    """

    def __init__(self, files: Any, prepare: Prepare) -> None:
        super().__init__(files, range(len(files)))
        self.prepare = prepare

    def __getitem__(self, place: int) -> Any:
        stored, label = item(self.whole, place)
        name = filename(self.whole, place)
        picture = read_picture(stored, name)
        check_depth(picture, name)
        return self.prepare(picture.convert("RGB")), label


def unlabelled(
    model: nn.Module, source: AnySource, limit: int | None = None, *, skip: bool = False
) -> Photographs | PhotographStream:
    """A dataset of images as the model expects them, `[C, H, W]`, without labels.

    source: a folder or a tar of pictures, with folders of classes, of anything else or without
        any; where it has splits, the split. Of other data the labels are left out.
    limit: take that many, evenly spaced. A stream comes whole, and `batches` ends it.
    skip: an image that cannot be read is left out by `batches`, with one warning; otherwise it is
        an error that names its file.
    """
    whole = _prepared(model, source)
    if streams(whole):
        return PhotographStream(whole, limit)
    name = str(getattr(source, "dataset", "") or source.root)
    return Photographs(evenly(whole, limit), name, skip)


def _prepared(model: nn.Module, source: AnySource) -> Any:
    """The images of a source as the model expects them, with whatever labels they have."""
    if isinstance(source, Source) and not source.dataset:
        return Pictures(strict(source.files()), source.prepare(model))
    whole = strict(source.open())
    whole.transform = source.prepare(model)
    return whole


def batches(
    images: Photographs | PhotographStream, batch_size: int, workers: int = 0
) -> Iterable[Tensor]:
    """Batches `[B, C, H, W]` of images without labels, the same at every turn; of what is no stream
    their number is known. What was left out is said in one warning at the end."""
    if isinstance(images, PhotographStream):
        return _First(DataLoader(images, batch_size, num_workers=workers), images.limit)
    return Batches(images, batch_size, workers)


class Batches:
    """Batches of photographs, without those that cannot be read."""

    def __init__(self, images: Photographs, batch_size: int, workers: int) -> None:
        self.images = images
        self.loader: DataLoader[Any] = DataLoader(
            images, batch_size, num_workers=workers, collate_fn=_together
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        unread: list[Unread] = []
        for batch, others in self.loader:
            unread += others
            if batch is not None:
                yield batch
        if unread:
            self._say(unread)

    def _say(self, unread: Sequence[Unread]) -> None:
        """Warn of what was left out, and refuse to leave out all."""
        name, total, first = self.images.name, len(self.images), unread[0].reason
        if len(unread) == total:
            raise DataError(f"{name}: no image of {total} can be read: {first}")
        warnings.warn(
            f"{name}: {len(unread)} of {total} images left out, the first: {first}", stacklevel=3
        )


def _together(images: Sequence[Tensor | Unread]) -> tuple[Tensor | None, list[Unread]]:
    """`[B, C, H, W]` of those that were read, and the others."""
    read = [image for image in images if isinstance(image, Tensor)]
    unread = [image for image in images if isinstance(image, Unread)]
    return torch.stack(read) if read else None, unread


class _First:
    """The first images of a stream; how many there are, it does not know."""

    def __init__(self, stream: Iterable[Tensor], limit: int | None) -> None:
        self.stream, self.limit = stream, limit

    def __iter__(self) -> Iterator[Tensor]:
        left = math.inf if self.limit is None else self.limit
        for images in self.stream:
            yield images[: int(min(left, len(images)))]
            left -= len(images)
            if left <= 0:
                return
