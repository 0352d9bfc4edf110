"""Sources of images, as people name them: folders, tars, Parquet, lists, what fsspec opens."""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitfold.errors import DataError, one_line
from vitfold.serve import kinds
from vitfold.serve.entries import Entry, beside, open_file, text_of
from vitfold.serve.libraries import filesystems
from vitfold.serve.walking import Walk

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder, a file or an address; with `*` or `{0..9}`, several; or a sequence of images."""

LISTS = (".txt", ".lst", ".list")
"""Endings of files that hold a path in each line."""


def described(source: Source) -> str:
    """What a source is called, the same at every run."""
    if isinstance(source, str | os.PathLike):
        return text_of(_whole(os.fspath(source)))
    digest = hashlib.sha256(
        "\n".join(str(os.fspath(path)) for path in source).encode(errors="replace")
    )
    return f"{len(source)} paths, {digest.hexdigest()[:16]}"


def entries_of(source: Source, walk: Walk) -> Iterator[Entry]:
    """Every image of a source, in an order that follows from names alone."""
    if not isinstance(source, str | os.PathLike):
        here = os.fsencode(os.path.join(os.getcwd(), "_"))
        yield from _listed([os.fspath(path) for path in source], here, walk)
        return
    address = _whole(os.fspath(source))
    for one, name in _expanded(address):
        yield from _place(one, name, walk)


def _whole(address: str) -> str:
    """A path that does not depend on the working directory; an address as it is."""
    return address if "://" in address or "::" in address else os.path.abspath(address)


def _place(address: str, name: str, walk: Walk) -> Iterator[Entry]:
    """The images of a folder or a file."""
    system, path = _opened(address)
    tail = address[address.index("::") :] if "::" in address else ""
    try:
        is_folder = system.isdir(path)
        is_there = is_folder or system.exists(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{address!r} cannot be opened: {one_line(error)}") from error
    if not is_there:
        raise DataError(f"{address}: there is no such folder or file")
    file = os.fsencode(address)
    if is_folder:
        yield from walk.folder(system, path, tail)
    elif kinds.ending(address) in LISTS:
        yield from _listed(Lines(file), file, walk)
    else:
        yield from walk.file(name, file, named=True)


def _opened(address: str) -> tuple[Any, str]:
    try:
        system, path = filesystems().core.url_to_fs(address)
        system.invalidate_cache()  # of what was there when somebody looked before
        return system, path
    except Exception as error:  # one whose library is not there, or that wants a password
        raise DataError(f"{address!r} cannot be opened: {one_line(error)}") from error


def _expanded(address: str) -> Iterator[tuple[str, str]]:
    """The addresses that one with `*` or `{0..9}` stands for, and what is left of each name after
    the folder that all are in."""
    if os.path.exists(address) or not re.search(r"[*?\[{]", address):
        yield address, address.rstrip("/").rpartition("/")[2]
        return
    parent = len(re.split(r"[*?\[{]", address)[0].rpartition("/")[0]) + 1
    matches = sorted({path for each in _braces(address) for path in _matches(each)})
    if not matches:
        raise DataError(f"{address}: no file matches")
    for path in matches:
        yield path, path[parent:]


def _braces(address: str) -> Iterable[str]:
    """`{000..012}` and `{a,b}`, as WebDataset has them."""
    if "{" not in address:
        return [address]
    import braceexpand

    try:
        return list(braceexpand.braceexpand(address))
    except ValueError as error:
        raise DataError(f"{address!r}: {one_line(error)}") from error


def _matches(address: str) -> list[str]:
    if not re.search(r"[*?\[]", address):
        return [address]
    system, path = _opened(address)
    local = "file" in system.protocol
    return [str(x if local else system.unstrip_protocol(x)) for x in system.glob(path)]


class Lines:
    """The paths in a list, read anew at every turn."""

    def __init__(self, file: bytes) -> None:
        self.file = file

    def __iter__(self) -> Iterator[str]:
        try:
            with open_file(self.file) as handle:
                text = io.TextIOWrapper(handle, "utf-8-sig", "surrogateescape", newline="\n")
                lines = (line.rstrip("\r\n") for line in text)
                yield from (line for line in lines if line.strip())
        except (OSError, ValueError) as error:
            why = one_line(error)
            raise DataError(f"{os.fsdecode(self.file)} cannot be read: {why}") from error


def _listed(paths: Iterable[str], file: bytes, walk: Walk) -> Iterator[Entry]:
    """The images that a list names. Of what it names several times, all but the first get a number:
    names are compared by 64 bits of their digests, which is all that memory has to hold."""
    digests = np.fromiter(map(_digest, paths), np.uint64)
    ordered = np.sort(digests)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    counts: Counter[str] = Counter()
    for path, digest in zip(paths, digests, strict=True):
        name = path
        if int(digest) in repeated:
            counts[path] += 1
            name = _free(path, counts, ordered)
        yield from walk.file(name, beside(file, path), named=True)


def _free(path: str, counts: Counter[str], taken: Any) -> str:
    """The path, or with the first number from 2 on by which nothing else goes."""
    while (number := counts[path]) > 1:
        name = f"{path}#{number}"
        digest = np.uint64(_digest(name))
        place = int(np.searchsorted(taken, digest))
        if place == len(taken) or taken[place] != digest:
            return name
        counts[path] += 1
    return path


def _digest(path: str) -> int:
    data = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(data, "little")


def inside(directory: Path) -> str:
    """What a walk leaves out: the folder of its own results."""
    return os.path.realpath(directory)
