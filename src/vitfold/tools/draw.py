"""Pictures of token groups."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from vitfold.errors import DataError
from vitfold.files import whole, writing

SMALLEST = 224
"""Pictures are enlarged to at least this side."""

DARK = 0.15
OUTLINE = 1.0
GAP, LABEL = 6, 16

GOLDEN = 0.618034
"""Steps of hue by this share of the circle keep colours apart, however many there are."""


def paint(image: Image.Image | Tensor, groups: Tensor, frames: int = 1) -> Image.Image:
    """`groups[height, width]` painted on an image: mean colours, outlines, dropped patches dark.
    Of an image that is several frames side by side, each has its own outlines."""
    pixels = _enlarged(to_pixels(image))
    size = pixels.shape[-2:]
    cells = F.interpolate(groups[None, None].cpu().double(), size=size, mode="nearest-exact")
    cells = cells[0, 0].long()
    painted = _mean_colours(pixels, cells).where(cells >= 0, pixels * DARK)
    edges = torch.cat([_outlines(frame) for frame in cells.chunk(frames, dim=-1)], dim=-1)
    return to_image(painted.masked_fill(edges, OUTLINE))


def film(clip: Tensor, groups: Tensor | int) -> Image.Image:
    """`groups[time, height, width]` painted on the frames of `clip[T, C, H, W]`, side by side: one
    frame for every step of time, the first of it. With a number of steps alone, the frames."""
    steps = groups if isinstance(groups, int) else len(groups)
    frames = clip[:: max(len(clip) // steps, 1)][:steps]
    line = torch.cat([to_pixels(frame) for frame in frames], dim=-1)
    if isinstance(groups, int):
        picture = plain(line)
    else:  # in one piece: a group has one colour, over all frames
        picture = paint(line, torch.cat(groups.unbind(), dim=-1), len(frames))
    width = picture.width // len(frames)
    sheet = Image.new("RGB", ((width + GAP) * len(frames) - GAP, picture.height), "white")
    for number in range(len(frames)):
        frame = picture.crop((number * width, 0, (number + 1) * width, picture.height))
        sheet.paste(frame, (number * (width + GAP), 0))
    return sheet


def palette(classes: int) -> Tensor:
    """`[classes, 3]`: a colour for each class."""
    colours = [
        colorsys.hsv_to_rgb(GOLDEN * n % 1, 0.85 - 0.35 * (n % 2), 0.95 - 0.15 * (n % 3))
        for n in range(classes)
    ]
    return torch.tensor(colours)


def plain(image: Image.Image | Tensor) -> Image.Image:
    """The image as the pictures show it."""
    return to_image(_enlarged(to_pixels(image)))


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture; until it is whole, the one before is there."""
    with writing(path, DataError), whole(path) as part:
        picture.save(part)


def row(pictures: list[Image.Image], labels: list[str], across: int | None = None) -> Image.Image:
    """Labelled pictures side by side, so many to a line; by themselves, lines of about equal
    length."""
    across = across or math.ceil(len(pictures) / math.ceil(len(pictures) / 7))
    width, height = pictures[0].width + GAP, pictures[0].height + GAP + LABEL
    down = math.ceil(len(pictures) / across)
    sheet = Image.new("RGB", (width * across - GAP, height * down), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = number % across * width, number // across * height
        pen.text((x + 2, y + 2), label, fill="black")
        sheet.paste(picture, (x, y + LABEL))
    return sheet


Channels = tuple[Sequence[float], Sequence[float]]
"""Their means and deviations."""


def denormalized(image: Tensor, channels: Channels | None) -> Tensor:
    """The image as it was before it was normalized with these means and deviations; as it is, where
    that does not give a picture."""
    pixels = image.detach().cpu().float()
    number = pixels.shape[-3]
    if channels is None or _in_unit_range(pixels) or len(channels[0]) < number:
        return pixels
    mean, std = (torch.tensor(values[:number]).view(-1, 1, 1) for values in channels)
    before = pixels * std + mean
    return before if _in_unit_range(before, 0.01) else pixels


def _in_unit_range(pixels: Tensor, slack: float = 0.0) -> bool:
    return bool((pixels >= -slack).all() and (pixels <= 1 + slack).all())


def to_pixels(image: Image.Image | Tensor) -> Tensor:
    """`[3, H, W]` in 0 to 1; a tensor that is not in that range is stretched to it."""
    if isinstance(image, Image.Image):
        from torchvision.transforms.v2.functional import pil_to_tensor

        return pil_to_tensor(image.convert("RGB")).float() / 255  # type: ignore[no-any-return]
    pixels = image.detach().cpu().float()
    pixels = pixels[:1].expand(3, -1, -1) if pixels.shape[0] < 3 else pixels[:3]
    if _in_unit_range(pixels, 0.01):
        return pixels.clamp(0, 1)
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / (high - low).clamp(min=1e-6)


def _enlarged(pixels: Tensor) -> Tensor:
    factor = max(1, math.ceil(SMALLEST / min(pixels.shape[-2:])))
    return pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _mean_colours(pixels: Tensor, cells: Tensor) -> Tensor:
    index = cells.clamp(min=0).flatten()
    total = torch.zeros(3, int(index.max()) + 1).index_add(1, index, pixels.flatten(1))
    count = torch.bincount(index, minlength=total.shape[1]).clamp(min=1)
    return (total / count)[:, index].view_as(pixels)


def _outlines(cells: Tensor) -> Tensor:
    """Where a group ends: pixels whose right or lower neighbour belongs to another one."""
    edge = torch.zeros_like(cells, dtype=torch.bool)
    edge[:, :-1] |= cells[:, :-1] != cells[:, 1:]
    edge[:-1] |= cells[:-1] != cells[1:]
    return edge


def to_image(pixels: Tensor) -> Image.Image:
    """A picture of `[3, H, W]` in 0 to 1."""
    from torchvision.transforms.v2.functional import to_pil_image

    return to_pil_image((pixels.clamp(0, 1) * 255).round().byte())  # type: ignore[no-any-return]
