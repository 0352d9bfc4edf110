"""How alike the tokens of an image are: before, inside and after the attention of every block."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import by_name
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.tokens.state import Ledger
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
    seen = clone(model).eval()
    found = find(seen)
    totals = torch.zeros(len(PLACES), found.depth, dtype=torch.float64)
    ledger = Ledger(found.layout().tokens, found.prefix)
    for index, (block, kind) in enumerate(zip(found.blocks, found.kinds, strict=True)):
        see = functools.partial(_add, totals[:, index])
        block.__dict__["forward"] = functools.partial(_seen, block, kind, ledger, see)
    images = 0
    device = next(seen.parameters()).device
    with torch.inference_mode():
        for pixels, _ in batches:
            seen(pixels.to(device))
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


def _add(totals: Tensor, *tokens: Tensor) -> None:
    totals += torch.stack([mean_cosine(x).sum() for x in tokens]).cpu()


def _seen(
    block: nn.Module,
    kind: BlockKind,
    ledger: Ledger,
    see: Any,
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """A block that shows its tokens on the way."""
    given = by_name(kind.arguments, args, kwargs)
    x = kind.turned(x)
    attend = Attend(ledger, given, False, "x_attn")
    after = kind.attend(block, x, attend)
    see(x, attend.cues, after)
    return kind.turned(kind.feed(block, after) if kind.feed else after)
