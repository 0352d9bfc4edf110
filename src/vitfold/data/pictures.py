"""Reading one picture: what Pillow cannot read is an error of one line that names the file."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitfold.errors import DataError, one_line

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of pictures that lose most of what they show when they become 8 bits a channel."""


def check_depth(picture: Image.Image, name: str) -> None:
    """Refuse a picture with more than 8 bits a channel, which would come out white."""
    if picture.mode in DEEP:
        raise DataError(f"{name} has more than 8 bits a channel: give a picture with 8")


def read_picture(
    file: Path | bytes, name: str, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The picture as it is stored, with its pixels; of an animation its first frame, as timm
    takes it.

    file: its path, or what is in it.
    formats: what Pillow may take it for, of what is `readable`; None: all that it knows.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from half the size on at which it refuses; such photographs are read.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = BytesIO(file) if isinstance(file, bytes) else file
            picture = Image.open(source, formats=formats)
            picture.load()
    except UnidentifiedImageError:
        raise DataError(f"{name} cannot be read: it is no picture") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{name} cannot be read: it has more than {_most_pixels()} pixels: give a smaller one"
        ) from None
    except Exception as error:  # Pillow's plugins raise what they like for a broken file
        raise DataError(f"{name} cannot be read: {one_line(error)}") from error
    return picture


def readable(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of Pillow's formats that it can read here."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def _most_pixels() -> int:
    """The number of pixels from which Pillow refuses a picture."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def read_photograph(path: Path) -> Image.Image:
    """A picture in RGB, turned as its camera says; more than 8 bits a channel are refused."""
    picture = read_picture(path, str(path))
    check_depth(picture, str(path))
    return ImageOps.exif_transpose(picture).convert("RGB")


def read_any(data: bytes, name: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The same of whatever a collection of images holds: 16 bits a channel become the upper 8."""
    picture = read_picture(data, name, formats)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes, and of what cameras note
            return _shallow(_turned(picture), name).convert("RGB")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} cannot be read: {one_line(error)}") from error


def _shallow(picture: Image.Image, name: str) -> Image.Image:
    """The picture in 8 bits a channel."""
    if picture.mode not in DEEP:
        return picture
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        raise DataError(f"{name} has numbers for pixels that are no 16 bits: give a picture with 8")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _turned(picture: Image.Image) -> Image.Image:
    """Turned as its camera says, where that can be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # its notes are broken, and not the picture
        return picture


def check_data_dir(path: Path) -> None:
    """Refuse a path where nothing is: a loop of links, a name that no file can have, ..."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"--data-dir {path}: there is no such folder or file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"--data-dir {str(path)!r}: {reason}") from None
