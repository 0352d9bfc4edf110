"""DynamicViT: small networks say which patches to keep."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.methods.base import register
from vitfold.methods.checks import check_number
from vitfold.methods.evit import keep_first
from vitfold.methods.staged import Staged
from vitfold.methods.steps import Learned, Pass, Step
from vitfold.tokens.kernels import rounding
from vitfold.tokens.layout import Layout
from vitfold.tokens.masked import Mark, Masked
from vitfold.tokens.match import NOWHERE, biggest_first
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import DROPPED, TokenMap


@register("dynamicvit")
@dataclass(frozen=True)
class DynamicViT(Staged):
    """Some blocks keep the patches that a small network scores highest, and drop the others.

    Training samples which stay, by Gumbel-softmax, and masks the others in attention; the shares
    that stay are drawn to those asked for. Inference keeps the best, in the number asked for.

    strength: how much a miss of those shares counts beside the loss on labels.
    """

    masks: ClassVar[bool] = True
    pads: ClassVar[bool] = False

    strength: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength, 0, 1e9)

    def learn(self, depth: int, width: int) -> "Predictors":
        return Predictors(self, depth, width)


class Predictor(nn.Module):
    """`[B, n, 2]`: log-probabilities that patches stay and that they go, of `[B, n, C]`; half of
    the features of each are a mean over those that are there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        side, quarter = max(width // 2, 1), max(width // 4, 1)
        self.side = side
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * side), nn.GELU())
        self.out = nn.Sequential(
            nn.Linear(2 * side, side),
            nn.GELU(),
            nn.Linear(side, quarter),
            nn.GELU(),
            nn.Linear(quarter, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, x: Tensor, presence: Tensor) -> Tensor:
        """presence: `[B, n]`, one for what is there."""
        own, others = self.enter(x).split(self.side, dim=-1)
        here = presence.unsqueeze(-1).to(others.dtype)
        mean = (others * here).sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp(min=1)
        said: Tensor = self.out(torch.cat([own, mean.expand_as(own)], dim=-1))
        return said


class Predictors(Learned):
    """What DynamicViT learns: a network for every block that reduces."""

    def __init__(self, method: DynamicViT, depth: int, width: int) -> None:
        super().__init__()
        self.method = method
        chosen = [block for block in method.chosen(depth) if block < depth]
        self.predict = nn.ModuleDict({str(block): Predictor(width) for block in chosen})

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        numbers, left = self.method.removes(layout, schedule), layout.patches
        steps: list[Step | None] = []
        for block, removes in enumerate(numbers):
            left -= removes
            match = functools.partial(self._match, str(block), removes, left)
            steps.append(Step("x", removes, match) if removes else None)
        return tuple(steps)

    def _match(
        self, block: str, removes: int, left: int, metric: Tensor, books: Ledger
    ) -> TokenMap | Mark:
        prefix = books.prefix
        own = next(self.predict[block].parameters()).dtype  # sharding may have lowered it
        patches = metric[:, prefix:].to(own)
        if isinstance(books, Masked):
            said = self.predict[block](patches, books.presence[:, prefix:])
            return self._mark(said, left, books)
        said = self.predict[block](patches, patches.new_ones(patches.shape[:2]))
        return keep_first(F.pad(said[..., 0], (prefix, 0)), removes, prefix)

    def _mark(self, said: Tensor, left: int, books: Masked) -> Mark:
        """What stays: sampled in training, the best `left` otherwise."""
        score = said[..., 0].detach().masked_fill(~books.here[:, books.prefix :], NOWHERE)
        if self.training:
            keep = F.gumbel_softmax(said, hard=True)[..., 0]
            none = ~((keep > 0.5) & (score > NOWHERE)).any(dim=1, keepdim=True)
            best = torch.zeros_like(keep).scatter(1, score.argmax(dim=1, keepdim=True), 1.0)
            keep = torch.where(none & (best > 0), best, keep)  # one stays, whatever was drawn
        else:
            first = biggest_first(score, rounding(score))[:, :left]
            keep = torch.zeros_like(score).scatter(1, first, 1.0)
        keep = F.pad(keep, (books.prefix, 0), value=1.0)
        places = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        return Mark(keep, places.where(keep.detach() > 0.5, DROPPED), places)

    def loss(self, seen: Pass) -> Tensor:
        misses = [(kept - asked).square().mean() for kept, asked in _shares(seen)]
        return self.method.strength * torch.stack(misses).mean() if misses else torch.zeros(())

    def figures(self, seen: Pass) -> dict[str, Any]:
        return {"kept": [float(kept.detach().mean()) for kept, _ in _shares(seen)]}


def _shares(seen: Pass) -> Sequence[tuple[Tensor, float]]:
    """For every block that reduces: the share of the patches that is left in each image, and the
    one asked for."""
    found, patches = [], seen.books[0].tokens - seen.books[0].prefix
    left = patches
    for step, book in zip(seen.plan, seen.books[1:], strict=True):
        if isinstance(step, Step) and isinstance(book, Masked):
            left -= step.removes
            found.append((book.presence[:, book.prefix :].mean(1), left / patches))
    return found
