"""Transforms of scenes: whole, the middle, or a random window; labels move with their pixels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from vitfold.errors import DataError
from vitfold.segment.scenes import Example
from vitfold.tools.answers import IGNORED

SCALE = (0.5, 2.0)
"""By how much a scene is made smaller or larger in training."""


class WholeScene(nn.Module):
    """A whole image as `[3, H, W]`, resized and normalized, and its labels as they are.

    window: what the model takes; an image is resized until its shorter side is that of the window.
    mean, std: of the channels.
    """

    def __init__(
        self, window: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise DataError(f"{name}={list(values)}: expected three numbers")
        if min(std) <= 0:
            raise DataError(f"std={list(std)}: expected numbers above 0")
        self.window = window
        self.finish = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        )
        self.around: dict[Any, Any] = {
            tv_tensors.Image: [round(255 * part) for part in mean],
            tv_tensors.Mask: IGNORED,
        }
        self.resize = v2.Resize(min(window), InterpolationMode.BILINEAR, antialias=True)

    def forward(self, picture: Image.Image, labels: Tensor) -> Example:
        """The whole image, resized; labels stay as fine as they were."""
        image: Tensor = self.finish(self.resize(v2.functional.pil_to_tensor(picture)))
        return image, labels


class CenterWindow(WholeScene):
    """The middle of an image, as large as a window."""

    def forward(self, picture: Image.Image, labels: Tensor) -> Example:
        """A window and its labels."""
        image, tagged = self.resize(*_tagged(picture, labels))
        more = [max(w - n, 0) for w, n in zip(self.window, image.shape[-2:], strict=True)]
        pad = v2.Pad([0, 0, more[1], more[0]], fill=self.around)
        image, tagged = v2.CenterCrop(list(self.window))(*pad(image, tagged))
        return self.finish(image.as_subclass(Tensor)), tagged.as_subclass(Tensor)


class RandomWindow(WholeScene):
    """A random part of an image, at a random size.

    scale: from what share of the usual size to what.
    flip: how often it is mirrored.
    jitter: how far colours move.
    """

    def __init__(
        self,
        window: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        scale: Sequence[float] = SCALE,
        flip: float = 0.5,
        jitter: float = 0.4,
    ) -> None:
        super().__init__(window, mean, std)
        _check(scale, flip, jitter)
        low, high = (round(min(window) * by) for by in scale)
        self.move = v2.Compose(
            [
                v2.RandomResize(low, high + 1, InterpolationMode.BILINEAR, antialias=True),
                v2.RandomCrop(list(window), pad_if_needed=True, fill=self.around),
                v2.RandomHorizontalFlip(flip),
                v2.ColorJitter(jitter, jitter, jitter),
            ]
        )

    def forward(self, picture: Image.Image, labels: Tensor) -> Example:
        """A window and its labels."""
        image, tagged = self.move(*_tagged(picture, labels))
        return self.finish(image.as_subclass(Tensor)), tagged.as_subclass(Tensor)


def _check(scale: Sequence[float], flip: float, jitter: float) -> None:
    """Refuse an augmentation that makes no sense."""
    if len(scale) != 2 or not 0.01 <= scale[0] <= scale[1] <= 100:
        raise DataError(f"scale={list(scale)}: expected two numbers, the smaller first, as 0.5,2")
    if not 0 <= flip <= 1:
        raise DataError(f"hflip={flip}: expected 0 to 1")
    if not 0 <= jitter <= 1:
        raise DataError(f"color_jitter={jitter}: expected 0 to 1")


def _tagged(picture: Image.Image, labels: Tensor) -> tuple[Any, Any]:
    """Image and labels with torchvision's types, so that both move alike."""
    return tv_tensors.Image(v2.functional.pil_to_tensor(picture)), tv_tensors.Mask(labels)
