"""Maps that models make of images, depths or masks, drawn dense beside folded."""

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.tokens.modes import evaluating
from vitfold.tools import draw
from vitfold.tools.looks import Look, look
from vitfold.tools.overlap import iou, relative

ERROR = 0.25
"""A relative difference of depth that is drawn white."""


def beside(model: nn.Module, images: Tensor, pictures: list[Image.Image]) -> list[Image.Image]:
    """For every image: itself, the map that the dense and the folded model make of it, and where
    these differ; nothing of models that make no depth or masks.

    images: `[B, C, H, W]`, prepared for the model.
    pictures: what they are made from.
    """
    with torch.inference_mode(), evaluating(model):
        folded = _look(model, images)
        if folded.depth is None and folded.masks is None:
            return []
        dense = _look(clone(model).eval(), images)
    size = (int(images.shape[-2]), int(images.shape[-1]))
    rows = []
    for number, picture in enumerate(pictures):
        photograph = picture.resize((size[1], size[0]))
        maps = _depths(folded, dense, number, size)
        maps = _classes(folded, dense, number, size) if maps is None else maps
        parts = [draw.plain(photograph), *(draw.plain(one) for one in maps.values())]
        rows.append(draw.row(parts, ["image", *maps]))
    return rows


def _look(model: nn.Module, images: Tensor) -> Look:
    """What a model says; nothing of one whose output nobody knows how to read."""
    try:
        return look(model, images).kept()
    except DataError:
        return Look()


def _depths(
    folded: Look, dense: Look, number: int, size: tuple[int, int]
) -> dict[str, Tensor] | None:
    """Depths from near to far as the dense model has them, in grey."""
    if folded.depth is None or dense.depth is None:
        return None
    ours, theirs = (part[number : number + 1].float() for part in (folded.depth, dense.depth))
    low, high = theirs.min(), theirs.max()
    span = (high - low).clamp(min=1e-6)
    share = (ours - theirs).abs() / theirs.abs().clamp(min=1e-6)
    differs = f"they differ: {float(relative(ours, theirs)):.1%}"
    maps = {"dense": (theirs - low) / span, "folded": (ours - low) / span, differs: share / ERROR}
    return {name: _sized(one, size).clamp(0, 1) for name, one in maps.items()}


def _classes(folded: Look, dense: Look, number: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Classes of pixels, or masks, in colours."""
    assert folded.masks is not None  # it has one of the two
    assert dense.masks is not None  # and so has the dense model
    ours, theirs = (part[number : number + 1] for part in (folded.masks, dense.masks))
    differs = f"IoU {float(iou(ours, theirs)):.1%}"
    labels = _labels(ours[0]), _labels(theirs[0])
    colours = draw.palette(1 + int(torch.stack(labels).max()))
    painted = [colours[one].permute(2, 0, 1) for one in labels]
    where = (labels[0] != labels[1]).float().unsqueeze(0)
    maps = {"dense": painted[1], "folded": painted[0], differs: where}
    return {name: _sized(one, size) for name, one in maps.items()}


def _labels(masks: Tensor) -> Tensor:
    """`[H, W]`: the class of every pixel, or the last mask that it is in, 0 for none."""
    if masks.dim() == 2:
        return masks
    numbers = torch.arange(1, len(masks) + 1).view(-1, 1, 1)
    return (masks * numbers).amax(dim=0)


def _sized(one: Tensor, size: tuple[int, int]) -> Tensor:
    """`[C, H, W]` of the size of the image."""
    return F.interpolate(one.float().unsqueeze(0), size=size, mode="nearest-exact")[0]
