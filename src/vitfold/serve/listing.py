"""The listing of a corpus: written once, whole, so that a resumed run sees the same work.

It is a file of Arrow whose batches are the shards: each is read by itself.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from vitfold.errors import DataError, one_line
from vitfold.files import whole, writing
from vitfold.serve.entries import NAMES, Entry, schema
from vitfold.serve.libraries import arrow

Item = TypeVar("Item")


def write(path: Path, entries: Iterable[Entry], shard_size: int) -> int:
    """Write entries in shards of that size, the last one smaller; how many there were."""
    pa, count = arrow(), 0
    with writing(path, DataError), whole(path) as part:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(part), schema(), options=options) as out:
            for shard in in_parts(entries, shard_size):
                out.write_batch(pa.record_batch(_columns(shard), schema=schema()))
                count += len(shard)
    return count


def in_parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many, the last one shorter."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _columns(shard: list[Entry]) -> list[list[Any]]:
    return [[getattr(entry, name) for entry in shard] for name in NAMES]


class Listing:
    """The shards of a corpus."""

    def __init__(self, path: Path) -> None:
        try:
            self.reader = arrow().ipc.open_file(arrow().memory_map(str(path)))
        except (OSError, ValueError) as error:  # arrow's own are among these
            raise DataError(f"{path} cannot be read: {one_line(error)}") from error

    def __len__(self) -> int:
        return int(self.reader.num_record_batches)

    def shard(self, number: int) -> list[Entry]:
        """The entries of one shard."""
        return [Entry(**row) for row in self.reader.get_batch(number).to_pylist()]

    def evenly(self, count: int, total: int) -> Iterator[Entry]:
        """So many of all entries, evenly spaced."""
        count = min(count, total)
        wanted = [number * total // count for number in range(count)]
        rows: list[Entry] = []
        start, number = 0, -1
        for place in wanted:
            while place >= start + len(rows):
                start, number = start + len(rows), number + 1
                rows = self.shard(number)
            yield rows[place - start]


def digest(path: Path) -> str:
    """SHA-256 of what is in a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
