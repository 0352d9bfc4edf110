"""Files of pictures."""

import json
import tarfile
from pathlib import Path

import numpy
from PIL import Image


def picture(width: int = 30, height: int = 30) -> Image.Image:
    noise = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(noise)


def shards(folder: Path) -> None:
    """A data set of WebDataset: a tar of pictures and labels, and what timm wants to know of it."""
    with tarfile.open(folder / "validation-0000.tar", "w") as tar:
        for number in range(6):
            image = folder / f"{number}.jpg"
            picture().save(image)
            image.with_suffix(".cls").write_text(str(number % 2))
            for file in image, image.with_suffix(".cls"):
                tar.add(file, file.name)
    part = {"filenames": ["validation-0000.tar"], "shard_lengths": [6], "num_samples": 6}
    output = {"splits": {"validation": {"name": "validation", **part}}}
    (folder / "_info.json").write_text(json.dumps(output))
