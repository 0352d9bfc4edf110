"""Writing files so that each is there whole, or as it was before."""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

from vitfold.errors import VitfoldError, one_line

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

STALE = 3600
"""After so many seconds nobody writes to a file any more that was not finished."""


@contextlib.contextmanager
def writing(path: Path, kind: type[VitfoldError], *others: type[Exception]) -> Iterator[None]:
    """Within it, errors that keep a path from being written become errors of that kind.

    others: what a library raises there, besides what a disk does.
    """
    known: tuple[type[Exception], ...] = (OSError, ValueError, SafetensorError, *others)
    try:
        yield
    except VitfoldError:
        raise
    except known as error:
        why = getattr(error, "strerror", None) or one_line(error)
        name = str(path) if str(path).isprintable() else repr(str(path))
        raise kind(f"{name} cannot be written: {why}") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another path to write to: what is there in the end takes the place of `path`, once it is on
    the disk. When something goes wrong, nothing has happened."""
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield part
        readable(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Another directory to write to: in the end it takes the place of `directory`, with all that is
    in that, in one step where the system has one for it (Linux), else in two. When something goes
    wrong before, nothing has happened; what a process that was killed left goes with the next, or
    comes back, where it was killed between these two steps."""
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    _clear_unfinished_directories(directory)
    part = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    part.mkdir()
    try:
        yield part
        if not _exchange(part, directory):
            _replace(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _exchange(part: Path, directory: Path) -> bool:
    """Let two directories change places at once; False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    paths = (os.fsencode(part), os.fsencode(directory))
    return bool(rename(AT_CWD, paths[0], AT_CWD, paths[1], EXCHANGE) == 0)


AT_CWD, EXCHANGE = -100, 2
"""Linux's numbers: whole paths, and two that change places."""


def _replace(part: Path, directory: Path) -> None:
    """Put one directory in the place of another, which stays beside it until that is done."""
    before = part.with_name(f"{part.name}.before")
    if directory.exists():
        directory.replace(before)
    part.replace(directory)
    shutil.rmtree(before, ignore_errors=True)


def _clear_unfinished_directories(directory: Path) -> None:
    name = re.compile(rf"\.{re.escape(directory.name)}\.[0-9a-f]{{8}}(\.before)?")
    for place in directory.parent.iterdir():
        found = name.fullmatch(place.name)
        if found is None or time.time() - place.lstat().st_mtime <= STALE:
            continue
        if found[1] and not directory.exists():
            place.replace(directory)
        else:
            shutil.rmtree(place, ignore_errors=True)


def remove_unfinished(path: Path, alone: bool) -> None:
    """Remove what processes that were killed left of writing to `path` by `whole`, and what
    safetensors, which writes beside it first, left of that.

    alone: whether nobody else can be writing to it now; else only what is old goes.
    """
    ours = rf"\.{re.escape(path.stem)}\.[0-9a-f]{{8}}{re.escape(path.suffix)}"
    name = re.compile(rf"{ours}|\.tmp[0-9A-Za-z]{{6}}")
    for file in path.parent.iterdir():
        if name.fullmatch(file.name):
            with contextlib.suppress(OSError):
                if alone or time.time() - file.lstat().st_mtime > STALE:
                    file.unlink()


def clear_unfinished(directory: Path) -> None:
    """Remove what processes that were killed left in a directory of writing by `whole`; for whoever
    has the directory alone."""
    for file in directory.iterdir():
        if UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
"""How `whole` calls what it writes to."""


@contextlib.contextmanager
def making(*directories: Path) -> Iterator[None]:
    """Directories, made where they are missing. What was made, and is empty still when something
    goes wrong, is removed again."""
    missing = [path for directory in directories for path in absent(directory)]
    try:
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        unmake(missing)
        raise


def absent(directory: Path) -> list[Path]:
    """What is not there of a path, the innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def unmake(directories: Iterable[Path]) -> None:
    """Remove directories that were made, but for those that something has been put into."""
    for path in sorted(set(directories), reverse=True):  # what is within another one, before it
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def held(directory: Path) -> Iterator[bool]:
    """A directory that others who ask for it by this function wait for; they may be other
    processes. What is missing of its path is made, and removed again when something goes wrong.

    Gives whether nobody else can have it: some file systems know no locks.
    """
    missing = absent(directory)
    handle = None
    try:
        handle, alone = _lock(directory)
        yield alone
    except BaseException:
        unmake(missing)
        raise
    finally:
        if handle is not None:
            _release(handle)


def _lock(directory: Path) -> tuple[int | None, bool]:
    """The handle of a directory that is locked; a process that ends lets go of it."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None, False
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return handle, False
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, directory):
            return handle, True
        os.close(handle)  # whoever had it before has removed it


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[bool]:
    """A directory, made where it is missing, that one process has at a time: gives whether it is
    this one. A process that ends lets go of it, and its children never have it. One that was made
    goes again when something goes wrong before anything is in it."""
    with making(directory):
        if fcntl is None:
            yield True
            return
        handle = os.open(directory, os.O_RDONLY)
        CLAIMS.add(handle)
        try:
            yield _claim(handle)
        finally:
            CLAIMS.discard(handle)
            os.close(handle)


def _claim(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[union-attr]
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no locks
        return True
    return True


CLAIMS: set[int] = set()
"""Handles of directories that are claimed. A child's copy of one would hold the directory when its
parent was killed."""


def _let_go() -> None:
    while CLAIMS:
        with contextlib.suppress(OSError):
            os.close(CLAIMS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _is_at(handle: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), directory.stat())
    except OSError:
        return False


def _release(handle: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child may have a copy of the handle
    os.close(handle)


def readable(path: Path) -> None:
    """Let those read a file who may read what else is written here: safetensors keeps it from all
    others."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
