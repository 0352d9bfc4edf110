"""What the text of an option means; refused where it means nothing."""

import ast
import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitfold.errors import DataError, MethodError, one_line
from vitfold.files import absent, unmake

if TYPE_CHECKING:
    import torch


def present(**values: Any) -> dict[str, Any]:
    """The keyword arguments that are not None: what the user set."""
    return {name: value for name, value in values.items() if value is not None}


def parse(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs; values are Python literals where they can be."""
    return dict(_pair(text) for item in pairs for text in re.split(r"\s+(?=\w+=)", item.strip()))


def arguments(kwargs: list[str], img_size: int | None) -> dict[str, Any]:
    """What a model takes when it is made."""
    arguments = parse(kwargs)
    if img_size is not None and "img_size" in arguments:
        raise DataError(f"--img-size {img_size} and img_size={arguments['img_size']!r}: give one")
    return arguments | present(img_size=img_size)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise DataError(f"{text!r}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return key, value


def reduction(text: str) -> int | list[int] | tuple[int, float]:
    """`13`, `16,16,8` or `13:-1`."""
    try:
        if ":" in text:
            r, inflection = text.split(":")
            return int(r), float(inflection)
        return [int(part) for part in text.split(",")] if "," in text else int(text)
    except ValueError:
        raise MethodError(f"--r {text!r}: expected 13, or 16,16,8, or 13:-1") from None


def shares(text: str) -> list[float]:
    """`0.9,0.6`, or `0.9..0.4` in steps of 0.1, or `0.9..0.4:0.05`."""
    try:
        ends, _, step = text.partition(":")
        if ".." not in ends:
            numbers = [float(part) for part in text.split(",")]
        else:
            first, last = (float(end) for end in ends.split(".."))
            by = abs(float(step or 0.1))
            count = round(abs(first - last) / by) + 1
            sign = 1 if last > first else -1
            numbers = [round(first + sign * by * number, 6) for number in range(count)]
    except (ValueError, ZeroDivisionError):
        numbers = []
    if not numbers or not all(0 < share <= 1 for share in numbers):
        raise MethodError(f"--flops {text!r}: expected shares in (0, 1], as 0.9,0.6 or 0.9..0.4")
    return numbers


LARGEST_BATCH = 10**12
"""Torch counts bytes in 63 bits; below this it says itself that memory is not enough."""


def batch_sizes(text: str) -> list[int]:
    """`32`, or `1,8,32`."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > LARGEST_BATCH:
        raise DataError(f"--batch-size {text!r}: expected numbers from 1 up, as 32 or 1,8,32")
    return sizes


def whole_numbers(option: str, text: str) -> list[int]:
    """`16`, or `4,8,16`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise MethodError(f"{option} {text!r}: expected numbers, as 16 or 4,8,16") from None


def method_name(text: str) -> str:
    """A registered name."""
    from vitfold.methods.registry import named

    return named(text.strip()).name


def device(name: str) -> "torch.device":
    """A device that is there, and computes."""
    import torch

    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = one_line(error).partition(". ")[0]
        raise DataError(f"--device {name!r} is not to be had here: {why}") from None
    return device


def directory(path: Path) -> Path:
    """A directory for results, made before the work and not after it; it goes again when the
    command ends and has put nothing into it."""
    try:
        missing = absent(path)
        path.mkdir(parents=True, exist_ok=True)
        CREATED.get().extend(missing)
        why = "" if os.access(path, os.W_OK) else os.strerror(errno.EACCES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        raise DataError(f"--output {path} is no directory to write to: {why}")
    return path


CREATED: ContextVar[list[Path]] = ContextVar("created", default=[])  # noqa: B039
"""Directories that the command that runs has made."""


@contextlib.contextmanager
def tidying() -> Iterator[None]:
    """Around a command: of the directories that it makes, those that stay empty go again, also
    where it fails or is stopped."""
    token = CREATED.set([])
    try:
        yield
    finally:
        unmake(CREATED.get())
        CREATED.reset(token)


def directory_beside(path: Path, *models: str | Path | None) -> Path:
    """The same, of what is made from a model in a directory, or a plan, which stay."""
    if any(_is_same(path, model) for model in models if model is not None):
        raise DataError(f"--output {path} is the model, which stays: give another directory")
    return directory(path)


def _is_same(path: Path, other: str | Path) -> bool:
    try:
        return path.resolve() == Path(other).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or no name of a file
        return False
