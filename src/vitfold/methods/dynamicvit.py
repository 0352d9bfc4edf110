"""DynamicViT: small networks say which patches to keep."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.methods.checks import check_number
from vitfold.methods.learned import Learned, Pass
from vitfold.methods.registry import register
from vitfold.methods.staged import Staged
from vitfold.methods.step import Plan, Step, View
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import NOWHERE
from vitfold.tokens.state import TokenState


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
        """presence: `[B, n]`, one for patches that are there."""
        own, others = self.enter(x).split(self.side, dim=-1)
        here = presence.unsqueeze(-1).to(others.dtype)
        mean = (others * here).sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.out(torch.cat([own, mean.expand_as(own)], dim=-1))
        return logits


class Predictors(Learned):
    """What DynamicViT learns: a network for every block that reduces."""

    def __init__(self, method: DynamicViT, depth: int, width: int) -> None:
        super().__init__()
        self.method = method
        stages = [block for block in method.stages(depth) if block < depth]
        self.predict = nn.ModuleDict({str(block): Predictor(width) for block in stages})

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        numbers, left = self.method.removes(layout, schedule), layout.patches
        steps: list[Step | None] = []
        for block, removes in enumerate(numbers):
            left = left - removes  # a tensor while traced, which must not change in place
            if removes:
                net = self.predict[str(block)]
                steps.append(Predicted("x", removes, left=left, predict=net))
            else:
                steps.append(None)
        return tuple(steps)

    def loss(self, run: Pass) -> Tensor:
        misses = [(kept - goal).square().mean() for kept, goal in _shares(run)]
        return self.method.strength * torch.stack(misses).mean() if misses else torch.zeros(())

    def figures(self, run: Pass) -> dict[str, Any]:
        return {"kept": [float(kept.detach().mean()) for kept, _ in _shares(run)]}


@dataclass(frozen=True, eq=False)
class Predicted(Step):
    """Keeps the patches that a network scores highest; in training, as many as it draws.

    left: how many those are.
    predict: the network.
    """

    left: int = field(kw_only=True)
    predict: nn.Module = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        prefix, present = state.prefix, state.presence()[:, state.prefix :]
        own = next(self.predict.parameters()).dtype  # sharding may have lowered it
        logits = self.predict(view.cue[:, prefix:].to(own), present)
        if self.predict.training:
            keep = F.pad(sampled(logits, present), (prefix, 0), value=1.0)
            return state.apply(x, state.keep(keep))
        return state.apply(x, state.keep_best(F.pad(logits[..., 0], (prefix, 0)), self.left))


def sampled(logits: Tensor, present: Tensor) -> Tensor:
    """`[B, n]`: one for patches that stay, drawn from `logits[B, n, 2]`; of those present one."""
    here = present.detach() > 0.5
    score = logits[..., 0].detach().masked_fill(~here, NOWHERE)
    keep = F.gumbel_softmax(logits, hard=True)[..., 0]
    none = ~((keep > 0.5) & here).any(dim=1, keepdim=True)
    best = torch.zeros_like(keep).scatter(1, score.argmax(dim=1, keepdim=True), 1.0)
    return torch.where(none & (best > 0), best, keep)  # one stays, whatever was drawn


def _shares(run: Pass) -> Sequence[tuple[Tensor, float]]:
    """For every block that reduces: `[B]` the share of patches left in each image, and the target
    share."""
    first = run.states[0]
    patches = left = first.tokens - first.prefix
    shares = []
    for step, state in zip(run.plan, run.states[1:], strict=True):
        if step is not None and step.removes:
            left -= step.removes
            shares.append(((state.left() - state.prefix) / patches, left / patches))
    return shares
