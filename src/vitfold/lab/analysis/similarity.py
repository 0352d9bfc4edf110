"""How alike the tokens of an image are: before, inside and after the attention of every block."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.tools.halves import Middle, dense_state, halved
from vitfold.tools.measure import Progress
from vitfold.tools.validate import Batch

PLACES = ("before", "inside", "after")


@dataclass(frozen=True)
class Similarity:
    """Mean cosine of two tokens of an image, by block: of what enters it, of what attention adds,
    and of what that leaves behind."""

    before: list[float]
    inside: list[float]
    after: list[float]


def token_similarity(
    model: nn.Module, batches: Iterable[Batch], progress: Progress = lambda: None
) -> Similarity:
    """The similarities in the dense model, in the mean over images."""
    watched = clone(model).eval()
    trunk = find(watched)
    totals = torch.zeros(len(PLACES), trunk.depth, dtype=torch.float64)
    state = dense_state(trunk)
    for index, (block, kind) in enumerate(zip(trunk.blocks, trunk.kinds, strict=True)):
        watch = functools.partial(_watch, totals[:, index])
        block.__dict__["forward"] = halved(block, kind, state, watch, "x_attn")
    images = 0
    device = next(watched.parameters()).device
    with torch.inference_mode():
        for pixels, _ in batches:
            watched(pixels.to(device))
            images += len(pixels)
            progress()
    before, inside, after = (totals / max(images, 1)).tolist()
    return Similarity(before, inside, after)


def mean_cosine(x: Tensor) -> Tensor:
    """`[B]`: the mean cosine over all pairs of different tokens of `x[B, n, C]`."""
    unit = F.normalize(x.double(), dim=-1)
    n = x.shape[1]
    together = unit.sum(dim=1).square().sum(dim=-1)  # all pairs, each token with itself too
    return (together - unit.square().sum(dim=(1, 2))) / (n * (n - 1))


def _watch(totals: Tensor, middle: Middle) -> Tensor:
    """Add the similarities of a batch, and hand the tokens on as they are."""
    places = (middle.before, middle.cue, middle.after)
    totals += torch.stack([mean_cosine(x).sum() for x in places if x is not None]).cpu()
    return middle.after
