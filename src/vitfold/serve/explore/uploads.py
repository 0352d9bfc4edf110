"""What somebody uploads: bounded in bytes before it is read, in pixels before it is decoded."""

import os
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from vitfold.data.pictures import read_any, readable
from vitfold.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What a picture may be. Others are refused before anything of them is decoded: some of Pillow's
formats start other programs."""

WORDS = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or PPM"

LONGEST = 60
"""The most characters of a name that messages show."""


@dataclass(frozen=True)
class Limits:
    """How large an upload may be.

    bytes: of the file.
    pixels: of the picture in it, which may be very many in a small file.
    """

    bytes: int = 2**24
    pixels: int = 50_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise DataError(f"--max-{name} {value}: expected a number from 1 up")


def read_upload(path: Path, limits: Limits) -> Image.Image:
    """The picture in a file, in RGB, turned as its camera says; a DataError says why not."""
    return decoded(_bytes(path, limits), name_of(path), limits)


def name_of(path: Path) -> str:
    """What the file is called, fit for a message."""
    name = "".join(letter if letter.isprintable() else "?" for letter in path.name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def decoded(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture in these bytes."""
    if not data:
        raise DataError(f"{name} is empty: give a picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is wrong in a file and does no harm
        _check_size(data, name, limits)
        return read_any(data, name, readable(FORMATS))


def _bytes(path: Path, limits: Limits) -> bytes:
    try:
        size = os.stat(path).st_size
        if size > limits.bytes:
            raise DataError(
                f"{name_of(path)} has {_mega(size)} MB: at most {_mega(limits.bytes)} are taken"
            )
        with open(path, "rb") as file:
            return file.read(limits.bytes)
    except OSError as error:
        raise DataError(f"{name_of(path)} cannot be read: {error.strerror}") from None


def _mega(count: int) -> str:
    return f"{count / 1e6:.4g}"


def _check_size(data: bytes, name: str, limits: Limits) -> None:
    """Refuse by the header alone what is no picture, or has too many pixels."""
    try:
        width, height = Image.open(BytesIO(data), formats=readable(FORMATS)).size
    except Image.DecompressionBombError:
        raise DataError(_too_many(name, "too many", limits)) from None
    except Exception:  # Pillow's plugins raise what they like for a broken header
        raise DataError(f"{name} cannot be read: it is no {WORDS}") from None
    if width * height > limits.pixels:
        raise DataError(_too_many(name, f"{width} x {height}", limits))


def _too_many(name: str, what: str, limits: Limits) -> str:
    most = _mega(limits.pixels)
    return f"{name} has {what} pixels: at most {most} million are taken; give a smaller picture"
