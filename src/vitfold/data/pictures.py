"""Reading one picture: what Pillow cannot read is an error of one line that names the file."""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vitfold.errors import DataError, one_line

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of pictures that lose most of what they show when they become 8 bits a channel."""


def check_depth(picture: Image.Image, name: str) -> None:
    """Refuse a picture with more than 8 bits a channel, which would come out white."""
    if picture.mode in DEEP:
        raise DataError(f"{name} has more than 8 bits a channel: give a picture with 8")


def read_picture(file: Path | bytes, name: str) -> Image.Image:
    """The picture as it is stored, with its pixels; of an animation its first frame, as timm
    takes it.

    file: its path, or what is in it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from half the size on at which it refuses; such photographs are read.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
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


def _most_pixels() -> int:
    """The number of pixels from which Pillow refuses a picture."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def read_photograph(path: Path) -> Image.Image:
    """A picture in RGB, turned as its camera says; more than 8 bits a channel are refused."""
    picture = read_picture(path, str(path))
    check_depth(picture, str(path))
    return ImageOps.exif_transpose(picture).convert("RGB")


def check_data_dir(path: Path) -> None:
    """Refuse a path where nothing is: a loop of links, a name that no file can have, ..."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"--data-dir {path}: there is no such folder or file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"--data-dir {str(path)!r}: {reason}") from None
