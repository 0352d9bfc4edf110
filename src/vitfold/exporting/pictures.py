"""How pictures become what a model takes, where a program does that itself."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.tools.wants import data_config

WAYS = ("bilinear", "bicubic")
"""Ways of resizing that programs have as Pillow does."""

MODES = ("center", "squash")


@dataclass(frozen=True)
class Preparation:
    """What timm does to a picture in evaluation: it is resized, cropped and normalized.

    size: height and width of what is cut out of the centre.
    crop_pct: the share of a side that this is.
    keeps: whether the picture keeps the relation of its sides.
    interpolation: bilinear or bicubic, as Pillow resizes: with antialiasing.
    mean, std: of the channels, from 0 to 1.
    """

    size: tuple[int, int]
    crop_pct: float
    keeps: bool
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width before the crop; where the picture keeps the relation of its sides, the
        shorter one has the (same) number."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        return height, width

    def __call__(self, picture: Image.Image) -> Tensor:
        """`[C, H, W]`, by timm and Pillow."""
        transform: Any = timm.data.create_transform(
            (len(self.mean), *self.size),
            crop_pct=self.crop_pct,
            crop_mode="center" if self.keeps else "squash",
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )
        prepared: Tensor = transform(picture)
        return prepared

    def samples(self) -> Iterator[tuple[str, Tensor]]:
        """Pictures `[H, W, 3]` in 8 bits of several sizes, soft ones and noise."""
        generator = torch.Generator().manual_seed(0)
        height, width = self.size
        sides = {(height, width), (2 * height + 1, 3 * width), (3 * height - 1, 2 * width)}
        for tall, wide in sorted({*sides, (height, 5 * width // 2), (height // 2, width)}):
            noise = torch.randint(256, (tall, wide, 3), generator=generator, dtype=torch.uint8)
            few = torch.randint(256, (5, 4, 3), generator=generator, dtype=torch.uint8)
            soft = Image.fromarray(few.numpy()).resize((wide, tall), Image.Resampling.BICUBIC)
            yield f"noise of {wide} x {tall} pixels", noise
            yield f"colours on {wide} x {tall} pixels", torch.from_numpy(pixels(soft))


def pixels(picture: Image.Image) -> Any:
    """An array `[H, W, 3]` of a picture."""
    return numpy.array(picture.convert("RGB"))


def preparation_of(model: nn.Module) -> Preparation:
    """What a model wants; refused where a program cannot do it."""
    config = data_config(model)
    if hasattr(model, "window"):
        raise _refusal("it takes whole pictures, over which a segmenter slides")
    height, width = config["input_size"][1:]
    keeps = config["crop_mode"] == "center"
    _expect("channels", config["input_size"][0], (3,))
    _expect("crop_mode", config["crop_mode"], MODES)
    _expect("interpolation", config["interpolation"], WAYS)
    if keeps and height != width:
        raise _refusal(f"the model crops {height} x {width} pixels, and only squares are cropped")
    mean, std = (tuple(config[name]) for name in ("mean", "std"))
    share, way = config["crop_pct"], config["interpolation"]
    return Preparation((height, width), share, keeps, way, mean, std)


def _expect(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        choice = " or ".join(map(str, known))
        raise _refusal(f"the model has {name} {value}, and a program takes {choice}")


def _refusal(why: str) -> UnsupportedModel:
    return UnsupportedModel(f"preprocess: {why}: leave it out, and prepare pictures outside")
