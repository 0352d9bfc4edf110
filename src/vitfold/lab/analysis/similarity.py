"""How alike the tokens of an image are: before, inside and after the attention of every block."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold
from vitfold.methods import Base, Step
from vitfold.methods.step import Plan, View
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState
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
    ours = clone(model).eval()
    totals = torch.zeros(len(PLACES), find(ours).depth, dtype=torch.float64)
    fold(ours, Compared(totals))
    images = 0
    device = next(ours.parameters()).device
    with torch.inference_mode():
        for pixels, _ in batches:
            ours(pixels.to(device))
            images += len(pixels)
            progress()
    before, inside, after = (totals / max(images, 1)).tolist()
    return Similarity(before, inside, after)


@dataclass(frozen=True)
class Compared(Base):
    """A method that changes nothing, and adds up how similar tokens are.

    totals: `[places, blocks]` sums over images.
    """

    totals: Tensor = field(compare=False)

    def __post_init__(self) -> None:
        """No option is anything but what it is."""

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """Looks at every block."""
        return tuple(Compare("x_attn", totals=self.totals[:, b]) for b in range(layout.depth))


@dataclass(frozen=True)
class Compare(Step):
    """A step that adds up how similar the tokens of its block are.

    totals: `[places]` where to.
    """

    totals: Tensor = field(kw_only=True, compare=False)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """Looks at what entered, what attention adds and what that comes to."""
        places = (view.before, view.cue, x)
        self.totals.add_(torch.stack([mean_cosine(tokens).sum() for tokens in places]).cpu())
        return x, state


def mean_cosine(x: Tensor) -> Tensor:
    """`[B]`: the mean cosine over all pairs of different tokens of `x[B, n, C]`."""
    unit = F.normalize(x.double(), dim=-1)
    n = x.shape[1]
    together = unit.sum(dim=1).square().sum(dim=-1)  # all pairs, each token with itself too
    return (together - unit.square().sum(dim=(1, 2))) / (n * (n - 1))
