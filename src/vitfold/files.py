"""Files that are there whole, or as they were before; and what is said where they cannot be."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from vitfold.errors import VitfoldError, one_line


@contextlib.contextmanager
def writing(path: Path, kind: type[VitfoldError], *others: type[Exception]) -> Iterator[None]:
    """What keeps a path from being written is an error of that kind.

    others: what a library raises there, besides what a disk does.
    """
    known: tuple[type[Exception], ...] = (OSError, ValueError, SafetensorError, *others)
    try:
        yield
    except VitfoldError:
        raise
    except known as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise kind(f"{path} cannot be written: {why}") from error


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


def readable(path: Path) -> None:
    """Let those read a file who may read what else is written here: safetensors keeps it from all
    others."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
