"""One image of a corpus: what it is called, and where its bytes are."""

import bisect
import functools
import os
import posixpath
import stat
from dataclasses import dataclass, fields
from typing import IO, Any

from vitfold.errors import DataError, one_line
from vitfold.serve.libraries import arrow, filesystems, parquet

MOST = 2**30
"""The most bytes of one image."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image.

    id: unique in its corpus, and the same whenever that is listed.
    path: where it is, for people.
    file: the file that holds it: a path of this machine, which may be no text, or an address.
    offset, length: of a member of a tar, where its bytes are in the tar as it is unpacked.
    row, column: of a row of Parquet, its number and the column that holds bytes.
    problem: why there is nothing to read; then nothing is read.
    """

    id: str
    path: str
    file: bytes
    offset: int | None = None
    length: int | None = None
    row: int | None = None
    column: str | None = None
    problem: str | None = None


NAMES = [field.name for field in fields(Entry)]


def schema() -> Any:
    """How entries are kept."""
    pa = arrow()
    kinds = {"file": pa.binary()} | dict.fromkeys(("offset", "length", "row"), pa.int64())
    return pa.schema([(name, kinds.get(name, pa.string())) for name in NAMES])


def read(entry: Entry) -> bytes:
    """The bytes of an image; an error that says why there are none."""
    if entry.problem is not None:
        raise DataError(entry.problem)
    try:
        data = _read(entry)
    except DataError:
        raise
    except Exception as error:  # libraries of file systems raise what they like
        why = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{entry.path} cannot be read: {why}") from error
    if data is None:
        raise DataError(f"{entry.path} is empty: there is no image in this row")
    if len(data) > MOST:
        raise DataError(f"{entry.path} has more than {MOST} bytes: give a smaller image")
    return data


def _read(entry: Entry) -> bytes | None:
    if entry.row is not None:
        return _cell(entry)
    if entry.offset is not None and entry.length is not None:
        return _member(entry.file, entry.offset, min(entry.length, MOST + 1))
    with open_file(entry.file) as file:
        return bytes(file.read(MOST + 1))


def open_file(file: bytes) -> Any:
    """A file to read, on this machine or at an address; one that is no file, such as a pipe that
    nobody writes to, is refused."""
    if is_local(file):
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise DataError(f"{os.fsdecode(file)} is no file")
        return open(file, "rb")
    system, path = _located(file)
    return system.open(path)


def _located(file: bytes) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    address = file.decode()
    own, chain, tail = address.partition("::")
    protocol, _, path = own.partition("://")
    if chain:
        return _chained(f"{protocol}://::{tail}", os.getpid()), path
    system, path = filesystems().core.url_to_fs(address)
    return system, path


@functools.lru_cache(maxsize=4)
def _chained(address: str, _process: int) -> Any:
    """A file system in a file of another one: it reads a table of all that is in it, and no two
    processes may read by the same."""
    return filesystems().core.url_to_fs(address)[0]


def is_local(file: bytes) -> bool:
    """Whether it is a path and no address."""
    return os.path.isabs(file)


def beside(file: bytes, path: str) -> bytes:
    """The file that a path in a file means: one that is not whole begins in the folder of it."""
    if "://" in path or "::" in path:
        return path.encode()
    if is_local(file) or os.path.isabs(path):
        return os.path.normpath(os.path.join(os.path.dirname(file), os.fsencode(path)))
    own, chain, tail = file.partition(b"::")
    protocol, mark, place = own.rpartition(b"://")
    # Stores of objects take dots in a path for what they are.
    there = posixpath.normpath(posixpath.join(posixpath.dirname(place), os.fsencode(path)))
    return protocol + mark + there + chain + tail


def text_of(name: str) -> str:
    """A name as text; of one that is none, its bytes in words."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _member(file: bytes, offset: int, length: int) -> bytes:
    """So many bytes of a file: of an address, those alone are fetched."""
    if (way := packed(file)) is not None:
        stream = _unpacked(file, way, os.getpid())
        stream.seek(offset)
        return bytes(stream.read(length))
    if is_local(file):
        with open_file(file) as own:
            own.seek(offset)
            return bytes(own.read(length))
    system, path = _located(file)
    return bytes(system.cat_file(path, start=offset, end=offset + length))


def packed(file: bytes) -> str | None:
    """How a tar is packed, by its name."""
    endings = {b".gz": "gzip", b".tgz": "gzip", b".bz2": "bz2", b".xz": "xz"}
    return next((way for ending, way in endings.items() if file.lower().endswith(ending)), None)


@functools.lru_cache(maxsize=1)
def _unpacked(file: bytes, way: str, _process: int) -> IO[bytes]:
    """What is in a packed file; it is kept, as going back in it means to begin again."""
    unpack = filesystems().compression.compr[way]
    return unpack(open_file(file), mode="rb")  # type: ignore[no-any-return]


def _cell(entry: Entry) -> bytes | None:
    assert entry.row is not None
    groups = _groups(entry.file)
    group = bisect.bisect_right(groups, entry.row)
    start = groups[group - 1] if group else 0
    cells = _column(entry.file, group, str(entry.column))
    value = cells[entry.row - start].as_py()
    if not isinstance(value, dict):
        return value  # type: ignore[no-any-return]
    if value["bytes"] is None and value.get("path"):
        with open_file(beside(entry.file, value["path"])) as file:
            return bytes(file.read(MOST + 1))
    return value["bytes"]  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4)
def _groups(file: bytes) -> list[int]:
    """The first row after each group of rows."""
    ends, rows = [], 0
    with open_file(file) as handle:
        about = parquet().ParquetFile(handle).metadata
        for number in range(about.num_row_groups):
            rows += about.row_group(number).num_rows
            ends.append(rows)
    return ends


@functools.lru_cache(maxsize=1)
def _column(file: bytes, group: int, column: str) -> Any:
    """The cells of one group of rows, which follow each other."""
    with open_file(file) as handle:
        return parquet().ParquetFile(handle).read_row_group(group, columns=[column])[column]
