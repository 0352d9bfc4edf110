"""Pictures as bytes, in many formats, and what is left of them after mishaps."""

from collections.abc import Iterator
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")


def scene(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """A picture of some blocks of colour."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def stored(picture: Image.Image, kind: str, **options: object) -> bytes:
    """What a file of that format holds."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def mishaps(count: int, seed: int = 0) -> Iterator[bytes]:
    """Files that are broken in one of many ways; some can be read all the same."""
    random = Random(seed)
    whole = [stored(scene(seed=number), kind) for number, kind in enumerate(FORMATS)]
    for _ in range(count):
        yield random.choice(WAYS)(random, random.choice(whole))


def cut(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 4, 40))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def header(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 3))):
        changed[random.randrange(min(64, len(changed)))] = random.choice((0, 1, 127, 128, 255))
    return bytes(changed)


def doubled(random: Random, data: bytes) -> bytes:
    start, stop = sorted(random.randrange(len(data)) for _ in range(2))
    return data[:stop] + data[start:]


def lost(random: Random, data: bytes) -> bytes:
    start, stop = sorted(random.randrange(len(data)) for _ in range(2))
    return data[:start] + data[stop:]


def noise(random: Random, data: bytes) -> bytes:
    keep = random.choice((0, 4, 16, 40))
    return data[:keep] + random.randbytes(random.randrange(1, 400))


WAYS = (cut, flipped, header, doubled, lost, noise)
