"""From the bytes of images to pixels for a model; what cannot be read has a reason in its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vitfold.data.inputs import Prepare, in_bytes
from vitfold.data.pictures import read_any
from vitfold.errors import DataError, one_line
from vitfold.serve.entries import Entry, read

LARGEST = 2**25
"""The most pixels of an image when its shorter side is as long as the model's: of one that is very
long and thin more would be made than there are in it."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A batch of images, in the order of their entries.

    pixels: `[B, C, H, W]` in 8 bits; zeros where an image cannot be read, so that a batch is always
        of the same size, whatever is wrong with an image in it.
    sizes: `[B, 2]`: width and height of each image, as it is seen.
    reasons: why an image cannot be read; None of one that was.
    """

    pixels: Any
    sizes: Any
    reasons: list[str | None]


@dataclass(frozen=True)
class Preparation:
    """How images are prepared: timm's options of data, which processes can be sent."""

    config: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.config["input_size"]
        return channels, height, width

    def transform(self) -> Prepare:
        """From a picture to pixels in 8 bits."""
        return in_bytes(self.config)


class Decoder:
    """Reads batches, in whatever process it is."""

    def __init__(self, preparation: Preparation) -> None:
        self.shape, self.transform = preparation.shape, preparation.transform()

    def __call__(self, entries: Sequence[Entry]) -> Decoded:
        """The images of some entries; nothing that an image holds is raised."""
        pixels = np.zeros((len(entries), *self.shape), np.uint8)
        sizes = np.zeros((len(entries), 2), np.int32)
        reasons: list[str | None] = [None] * len(entries)
        for place, entry in enumerate(entries):
            try:
                pixels[place], sizes[place] = self.one(entry)
            except DataError as error:
                reasons[place] = str(error)
            except Exception as error:  # what resizes raises what it likes
                why = one_line(error) or type(error).__name__
                reasons[place] = f"{entry.path} cannot be prepared: {why}"
        return Decoded(pixels, sizes, reasons)

    def one(self, entry: Entry) -> tuple[Any, tuple[int, int]]:
        """`[C, H, W]` in 8 bits, and width and height as they were."""
        return self.prepared(read_any(read(entry), entry.path), entry.path)

    def prepared(self, picture: Image.Image, name: str) -> tuple[Any, tuple[int, int]]:
        """The same of a picture that was read."""
        width, height = picture.size
        long, short = max(picture.size), min(picture.size)
        if long / short * max(self.shape[1:]) ** 2 > LARGEST:
            raise DataError(f"{name} is {width}x{height}: too long and thin to be resized")
        return self.transform(picture).numpy(), (width, height)


def failed(entries: Sequence[Entry], shape: tuple[int, int, int], why: str) -> Decoded:
    """A batch of which nothing could be read."""
    count = len(entries)
    reasons: list[str | None] = [f"{entry.path} {why}" for entry in entries]
    return Decoded(np.zeros((count, *shape), np.uint8), np.zeros((count, 2), np.int32), reasons)


def joined(batches: Sequence[Decoded]) -> Decoded:
    """Batches one after another, as one."""
    return Decoded(
        np.concatenate([batch.pixels for batch in batches]),
        np.concatenate([batch.sizes for batch in batches]),
        [reason for batch in batches for reason in batch.reasons],
    )
