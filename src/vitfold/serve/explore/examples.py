"""Pictures to begin with: those of a folder, digits for the model of digits, or what comes with the
library of the page."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import nn

from vitfold.data.digits import MEAN, STD, load_split
from vitfold.data.pictures import read_photograph
from vitfold.errors import DataError, VitfoldError
from vitfold.folding.families import find
from vitfold.tools.draw import to_image

MOST = 8
"""So many are offered."""

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")

BUNDLED = ("cheetah1.jpg", "tower.jpg", "lion.jpg", "bus.png")
"""Photographs that come with the library of the page, where it has them."""

Examples = list[tuple[str, Image.Image]]
"""Their names, and pictures in RGB."""


def examples(model: nn.Module, folder: Path | None = None) -> Examples:
    """Pictures to begin with; a DataError says why a folder has none."""
    if folder is not None:
        return _of_folder(folder)
    if find(model).size[0] == 1:
        return _digits()
    return [*_bundled()] or [("drawn", drawn())]


def _of_folder(folder: Path) -> Examples:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)[:MOST]
    except OSError as error:
        raise DataError(f"--examples {folder}: {error.strerror}") from None
    if not paths:
        raise DataError(f"--examples {folder}: expected pictures ({', '.join(ENDINGS)}) in it")
    return [(path.name, read_photograph(path)) for path in paths]


def _digits() -> Examples:
    """Some held-out digits, where the library that has them is installed."""
    try:
        images, labels = load_split("test")
    except VitfoldError:
        return [("drawn", drawn())]
    pixels = images[:MOST] * STD + MEAN
    return [
        (f"a {label}", to_image(picture.expand(3, -1, -1)))
        for label, picture in zip(labels[:MOST].tolist(), pixels, strict=True)
    ]


def _bundled() -> Iterator[tuple[str, Image.Image]]:
    library = importlib.util.find_spec("gradio")
    if library is None or library.origin is None:
        return
    for name in BUNDLED:
        path = Path(library.origin).parent / "media_assets" / "images" / name
        if path.is_file():
            yield path.stem.rstrip("1"), read_photograph(path)


def drawn(side: int = 320) -> Image.Image:
    """A picture that needs no file: a disc and a hill before a sky."""
    sky = Image.linear_gradient("L").resize((side, side))
    picture = Image.merge("RGB", [sky.point(lambda v: 90 + v // 2), sky, sky.point(lambda _: 255)])
    disc = Image.new("L", (side, side))
    ring = Image.radial_gradient("L").resize((side // 3, side // 3)).point(lambda v: 255 * (v < 90))
    disc.paste(ring, (side // 2, side // 8))
    picture.paste((255, 200, 60), mask=disc)
    picture.paste((40, 110, 50), (0, side * 3 // 4, side, side))
    return picture
