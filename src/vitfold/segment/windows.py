"""Images of any size, by windows that slide over them."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.errors import DataError

Size = tuple[int, int]

TOGETHER = 16
"""How many windows go through the model at once."""


def corners(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis; the last one ends with the image."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def slide(
    model: Callable[[Tensor], Tensor], images: Tensor, window: Size, stride: int | None = None
) -> Tensor:
    """`[B, classes, H, W]`: the logits of every pixel, the mean over the windows that see it.

    images: `[B, C, H, W]`; where they are smaller than a window, zeros are put beside them.
    stride: pixels from a window to the next; None: windows lie side by side, or overlap by what is
        too much for that.
    """
    whole = stride is None or (isinstance(stride, int) and not isinstance(stride, bool))
    if not whole or (stride is not None and not 1 <= stride <= min(window)):
        raise DataError(f"stride={stride!r}: expected 1 to {min(window)}, the side of a window")
    if images.dim() != 4:
        raise DataError(f"images of shape {list(images.shape)}: expected [B, C, H, W]")
    height, width = images.shape[-2:]
    if not len(images):
        logits = model(images.new_zeros(0, images.shape[1], *window))
        return logits.new_zeros(0, logits.shape[1], height, width)
    more = max(window[1] - width, 0), max(window[0] - height, 0)
    padded = F.pad(images, (0, more[0], 0, more[1]))
    places = list(
        itertools.product(
            corners(height, window[0], stride or window[0]),
            corners(width, window[1], stride or window[1]),
        )
    )
    crops = torch.cat([padded[..., y : y + window[0], x : x + window[1]] for y, x in places])
    logits = torch.cat([model(some) for some in crops.split(TOGETHER)])
    total = logits.new_zeros(len(images), logits.shape[1], *padded.shape[-2:])
    counts = logits.new_zeros(padded.shape[-2:])
    for (y, x), part in zip(places, logits.split(len(images)), strict=True):
        total[..., y : y + window[0], x : x + window[1]] += part
        counts[y : y + window[0], x : x + window[1]] += 1
    return (total / counts)[..., :height, :width]
