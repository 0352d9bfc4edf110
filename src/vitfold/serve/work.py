"""What an engine is given to do, and how it tells what it has done."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from vitfold.errors import DataError
from vitfold.serve.decoding import Preparation
from vitfold.serve.embedder import Embedder
from vitfold.serve.entries import Entry
from vitfold.serve.listing import Listing
from vitfold.serve.settings import Settings
from vitfold.serve.shards import Failure, Record, Shards


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    images: of the whole corpus.
    before: how many of them an earlier run has done.
    decoded: how many are read, and `done` with, by now; None where the engine does not say.
    failed: how many of those that are done cannot be read.
    """

    images: int
    before: int
    done: int
    failed: int
    decoded: int | None = None


Tell = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Work:
    """The shards that are to be embedded, and by what.

    model: None where it is sent by another way.
    """

    model: nn.Module | None
    preparation: Preparation
    settings: Settings
    shards: Shards
    todo: Sequence[int]
    device: torch.device
    workers: int

    @property
    def listing(self) -> Path:
        """The file that says which images there are."""
        return listing_file(self.shards.directory)

    def embedder(self) -> Embedder:
        """The model, ready."""
        assert self.model is not None
        return Embedder(self.model, self.preparation, self.settings, self.device)

    def batches(self, entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
        """The images of a shard, in batches that are the same at every run."""
        size = self.settings.batch_size
        return (entries[start : start + size] for start in range(0, len(entries), size))

    def open(self) -> Listing:
        """The listing."""
        return Listing(self.listing)


def listing_file(directory: Path) -> Path:
    """Where the listing of a directory is."""
    return directory / "work" / "listing.arrow"


@dataclass
class Tally:
    """Counts what engines do, tells it, and stops them where too much fails.

    most: so many images may fail.
    """

    progress: Progress
    tell: Tell
    most: int | None = None
    failures: list[Failure] = field(default_factory=list)

    def add(self, images: int, failures: Sequence[Failure], decoded: int | None = None) -> None:
        """Count what has been done with some more images.

        decoded: how many this run has read by now.
        """
        now = self.progress
        read = None if decoded is None else now.before + decoded
        failed, done = now.failed + len(failures), now.done + images
        self.progress = replace(now, done=done, failed=failed, decoded=read)
        self.tell(self.progress)
        if self.most is not None:
            self.failures += failures
            self.check()

    def earlier(self, record: Record) -> None:
        """Count a shard that an earlier run has done."""
        now, failed = self.progress, len(record.failures)
        counts = {"before": now.before + record.images, "done": now.done + record.images}
        self.progress = replace(now, **counts, failed=now.failed + failed)
        if self.most is not None:
            self.failures += record.failures

    def check(self) -> None:
        """Refuse to go on where more has failed than may."""
        if self.most is not None and self.progress.failed > self.most:
            first = self.failures[0]["reason"]
            raise TooManyFailures(
                f"{self.progress.failed} of {self.progress.done} images so far cannot be read, "
                f"more than --max-failures {self.most}: see failures.parquet; the first: {first}"
            )


class TooManyFailures(DataError):
    """More images cannot be read than may fail."""
