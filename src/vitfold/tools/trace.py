"""Trace: what became of every token, as counts, maps and pictures."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

from PIL import Image
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.folding.calls import fold_of, follow
from vitfold.folding.families import Family
from vitfold.folding.inputs import Inputs, images_in
from vitfold.folding.run import Run
from vitfold.tokens.layout import Grid
from vitfold.tokens.tokenmap import PackedMap, TokenMap
from vitfold.tools import draw

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Trace:
    """The tokens of some images on their way through the blocks of a folded model.

    counts: `[block][image]` how many tokens leave each block, prefix included.
    maps: `[block]` from the original tokens to those that leave it.
    prefix: how many of them are not patches.
    grid: of the patches, where they form one: height and width, or more axes.
    images: `[B, C, H, W]` what was traced, where it was images; or clips, `[B, T, C, H, W]`.
    channels: mean and deviation of the channels, where they were normalized by known ones.
    """

    counts: list[list[int]]
    maps: list[TokenMap | PackedMap]
    prefix: int
    grid: Grid | None
    images: Tensor | None
    channels: draw.Channels | None = None

    def groups(self, image: int = 0, block: int = -1) -> Tensor:
        """`[height, width]`, or what other axes the grid has: the token that each patch is part of
        after a block, -1 for dropped."""
        if self.grid is None:
            raise DataError("these images have no common patch grid: trace images of one size")
        slot = self._at("block", self.maps, block).slot
        return self._at("image", slot.unbind(), image)[self.prefix :].view(self.grid)

    def draw(
        self, image: int | Image.Image | Tensor = 0, *, index: int = 0, block: int = -1
    ) -> Image.Image:
        """A picture of the tokens after a block: every group in its mean colour, with outlines;
        dropped patches dark. Of a clip, its frames side by side, one for every step of time.

        `image` is the number of a traced image, or what to paint instead of image `index`.
        """
        picture, number = self._picture(image, index)
        groups = self.groups(number, block)
        if groups.dim() == 3 and _is_clip(picture):
            return draw.film(picture, groups)
        if groups.dim() != 2:
            axes = " x ".join(map(str, groups.shape))
            raise DataError(f"a grid of {axes} has no picture: draw planes of trace.groups()")
        return draw.paint(picture, groups)

    def strip(self, image: int | Image.Image | Tensor = 0, *, index: int = 0) -> Image.Image:
        """A picture of the image and of its tokens after every block that changed them, side by
        side; of a clip, one below the other."""
        counts = [[self.maps[0].tokens] * len(self.counts[0]), *self.counts]
        blocks = [b for b in range(len(self.maps)) if counts[b] != counts[b + 1]]
        pictures = [self.draw(image, index=index, block=block) for block in blocks]
        picture, number = self._picture(image, index)
        labels = [f"block {b}: {self.counts[b][number]}" for b in blocks]
        if _is_clip(picture):
            steps = self.groups(number).shape[0]
            return draw.row([draw.film(picture, steps), *pictures], ["clip", *labels], across=1)
        return draw.row([draw.plain(picture), *pictures], ["image", *labels])

    def _picture(
        self, image: int | Image.Image | Tensor, index: int
    ) -> tuple[Image.Image | Tensor, int]:
        """What to paint on, and the number of the image whose tokens are painted."""
        if isinstance(image, Image.Image):
            return image, index
        if isinstance(image, Tensor):
            timed = self.grid is not None and len(self.grid) == 3
            if image.dim() != 3 and not (timed and image.dim() == 4):
                expected = "[C, H, W], or [T, C, H, W]" if timed else "[C, H, W]"
                raise DataError(f"a picture of shape {list(image.shape)}: expected {expected}")
            return image, index
        try:
            number = operator.index(image)
        except TypeError:
            kind = type(image).__name__
            raise DataError(f"{kind}: expected a number, a PIL picture or a tensor") from None
        if self.images is None:
            raise DataError("what was traced is not images: give the picture to paint on")
        return draw.denormalized(
            self._at("image", self.images.unbind(), number), self.channels
        ), number

    @staticmethod
    def _at(what: str, items: Sequence[T], index: int) -> T:
        try:
            index = operator.index(index)
        except TypeError:
            raise DataError(f"{what}={index!r}: expected a whole number") from None
        if not -len(items) <= index < len(items):
            raise DataError(f"{what}={index}: there are {len(items)}, numbered from 0")
        return items[index]


def trace(model: nn.Module, images: Inputs) -> Trace:
    """Run a folded model on images (or on the inputs of a Hugging Face vision model, by name) and
    keep what became of every token."""
    return trace_of(follow(model, images), model, images)


def trace_of(run: Run, model: nn.Module, images: Inputs) -> Trace:
    """The trace of a run that a folded model has made of images."""
    first, *states = run.states
    pixels = images_in(images)
    return Trace(
        counts=[state.counts for state in states],
        maps=[state.whole for state in states],
        prefix=first.prefix,
        grid=first.grid,
        images=_pictures(pixels, first.grid),
        channels=_channels(fold_of(model).family),
    )


def _pictures(pixels: Tensor, grid: Grid | None) -> Tensor | None:
    """What is painted on: images, clips, or the frames of clips that are each an image to a
    model."""
    if pixels.dim() == 5:
        return pixels.flatten(0, 1) if grid is None or len(grid) < 3 else pixels
    return pixels if pixels.dim() == 4 else None


def _is_clip(picture: Image.Image | Tensor) -> TypeGuard[Tensor]:
    return isinstance(picture, Tensor) and picture.dim() == 4


def _channels(family: Family) -> draw.Channels | None:
    """How the images of a model are normalized, where it or its checkpoint says so."""
    config = family.preprocessing()
    return (config["mean"], config["std"]) if {"mean", "std"} <= config.keys() else None
