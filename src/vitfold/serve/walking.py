"""Walking through a source: every image in it, in one order, and what is no image, counted."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vitfold.errors import DataError, one_line
from vitfold.serve import kinds
from vitfold.serve.entries import Entry, beside, open_file, packed, text_of
from vitfold.serve.libraries import arrow, filesystems, parquet

PATHS = ("image", "path", "file", "file_name", "filename", "filepath", "image_path", "url")
"""What columns of paths are called."""


@dataclass
class Walk:
    """One walk.

    column: the column of Parquet that holds images or their paths; None: the first that can.
    leave: a folder that is not walked through, as results go there.
    skipped: how many files were no images, by the endings of their names.
    """

    column: str | None = None
    leave: str | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def folder(self, system: Any, folder: str, tail: str, above: tuple[str, ...] = ()) -> Any:
        """Everything in a folder and below it.

        tail: what follows a path in its address, where that is a chain of file systems.
        above: the folders that it lies in, which a link could lead back to.
        """
        yield from self._in(system, folder, folder, tail, above)

    def _in(
        self, system: Any, root: str, folder: str, tail: str, above: tuple[str, ...]
    ) -> Iterator[Entry]:
        place = os.path.realpath(folder) if _is_local(system) else folder
        if place in above or place == self.leave:
            return
        try:
            listing = _listing(system, folder)
        except OSError as error:
            yield problem(_below(root, folder), _address(system, folder, tail), error)
            return
        for path, is_folder in listing:
            if is_folder:
                yield from self._in(system, root, path, tail, (*above, place))
            else:
                yield from self.file(_below(root, path), _address(system, path, tail))

    def file(self, name: str, file: bytes, *, named: bool = False) -> Iterator[Entry]:
        """The images of one file.

        name: what it is called in its corpus.
        named: whether somebody has named it as an image, whatever its name ends in.
        """
        if kinds.is_tar(name):
            yield from self.tar(name, file)
        elif kinds.is_table(name):
            yield from self.table(name, file)
        elif named or kinds.is_picture(name) or _begins_so(file):
            yield Entry(text_of(name), text_of(os.fsdecode(file)), file)
        else:
            self.skipped[kinds.ending(name)] += 1

    def tar(self, name: str, file: bytes) -> Iterator[Entry]:
        """The images in a tar; where it is damaged, that is one entry more."""
        try:
            yield from self._members(name, file)
        except Exception as error:  # also what unpacks it raises
            yield problem(name, file, error, "from here on ")

    def _members(self, name: str, file: bytes) -> Iterator[Entry]:
        seen: Counter[str] = Counter()
        place = os.fsdecode(file)
        with open_file(file) as stored:
            way = packed(file)
            stream = filesystems().compression.compr[way](stored, mode="rb") if way else stored
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # which it would keep
                    if not member.isfile():
                        continue
                    if not self._wanted(tar, member):
                        self.skipped[kinds.ending(member.name)] += 1
                        continue
                    seen[member.name] += 1
                    again = f"#{seen[member.name]}" if seen[member.name] > 1 else ""
                    own = text_of(member.name + again)
                    text = f"{text_of(place)}/{own}"
                    where = (member.offset_data, member.size)
                    yield Entry(f"{text_of(name)}/{own}", text, file, *where)
                _check_end(tar, stream)

    def _wanted(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        if kinds.is_picture(member.name):
            return True
        content = tar.extractfile(member)
        return content is not None and kinds.looks_like_picture(content.read(kinds.HEAD))

    def table(self, name: str, file: bytes) -> Iterator[Entry]:
        """The rows of a file of Parquet: each is one image."""
        try:
            with open_file(file) as stored:
                yield from self._rows(name, file, parquet().ParquetFile(stored))
        except DataError:
            raise
        except Exception as error:  # arrow's own, and those of file systems
            yield problem(name, file, error)

    def _rows(self, name: str, file: bytes, table: Any) -> Iterator[Entry]:
        column, holds = _column(table.schema_arrow, self.column, name)
        text, own = text_of(os.fsdecode(file)), text_of(name)
        if holds:
            for row in range(table.metadata.num_rows):
                place = f"{text}/{row}"
                yield Entry(f"{own}/{row}", place, file, row=row, column=column)
            return
        row = 0
        for batch in table.iter_batches(columns=[column]):
            for path in batch[column].to_pylist():
                yield self._pointed(f"{own}/{row}", f"{text}/{row}", file, path)
                row += 1

    def _pointed(self, name: str, place: str, file: bytes, path: str | None) -> Entry:
        if path is None:
            return Entry(name, place, file, problem=f"{place} is empty: there is no path there")
        there = beside(file, path)
        return Entry(name, text_of(os.fsdecode(there)), there)


def problem(name: str, file: bytes, error: Exception, where: str = "") -> Entry:
    """An entry for what a damaged file or folder hides: it fails, by this error."""
    why = getattr(error, "strerror", None) or one_line(error)
    place = text_of(os.fsdecode(file))
    return Entry(text_of(name), place, file, problem=f"{place} cannot be read {where}({why})")


def _column(schema: Any, asked: str | None, name: str) -> tuple[str, bool]:
    """The column of images, and whether it holds bytes and not paths."""
    kinds_of = {field.name: _holds(field.type) for field in schema}
    if asked is not None:
        if (holds := kinds_of.get(asked)) is None:
            known = ", ".join(n for n, h in kinds_of.items() if h is not None) or "none"
            raise DataError(f"{name}: no column {asked!r} of images or paths (there are: {known})")
        return asked, holds
    able = [column for column, holds in kinds_of.items() if holds]
    able += [column for column in PATHS if kinds_of.get(column) is False]
    if not able:
        raise DataError(
            f"{name} has no column of bytes, and none of paths by the name of {', '.join(PATHS)}: "
            f"give --column, one of {', '.join(kinds_of)}"
        )
    return able[0], bool(kinds_of[able[0]])


def _holds(kind: Any) -> bool | None:
    """Whether a type is of bytes; False: of text; None: of neither. Hugging Face keeps bytes in a
    record."""
    types = arrow().types
    if types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return True if "bytes" in names else None
    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    return False if types.is_string(kind) or types.is_large_string(kind) else None


def _check_end(tar: tarfile.TarFile, stream: Any) -> None:
    """Refuse a tar that stops before its end mark: tarfile takes any damage for the end."""
    stream.seek(tar.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise DataError(f"no header at byte {tar.offset}")
    if not block:
        raise DataError("it has no end mark: was it written to its end?")


def _begins_so(file: bytes) -> bool:
    try:
        with open_file(file) as handle:
            return kinds.looks_like_picture(handle.read(kinds.HEAD))
    except (OSError, DataError):
        return False


def _listing(system: Any, folder: str) -> list[tuple[str, bool]]:
    """What is in a folder, in the order of names, and whether each is a folder."""
    if _is_local(system):
        with os.scandir(folder) as there:
            return sorted((item.path, _is_folder(item)) for item in there)
    found = system.ls(folder, detail=True)
    pairs = {(item["name"].rstrip("/"), item["type"] == "directory") for item in found}
    return sorted(pair for pair in pairs if pair[0] != folder.rstrip("/"))


def _is_folder(item: "os.DirEntry[str]") -> bool:
    try:
        return item.is_dir()
    except OSError:  # a loop of links; opening it says so
        return False


def _is_local(system: Any) -> bool:
    return "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))


def _below(root: str, path: str) -> str:
    return path[len(root) :].lstrip("/") or path.rpartition("/")[2]


def _address(system: Any, path: str, tail: str) -> bytes:
    """The file at a path, as entries have it."""
    if _is_local(system) and not tail:
        return os.fsencode(path)
    return (str(system.unstrip_protocol(path)) + tail).encode()
