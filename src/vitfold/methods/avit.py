"""A-ViT: every token adds up halting scores from block to block, and stops when it has enough."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.methods import distributed
from vitfold.methods.base import Base
from vitfold.methods.checks import check_number, check_share
from vitfold.methods.learned import Learned, Pass, mean_counts
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState

NOTHING = 1e-30
"""Room for less than this is none."""

FAR = 1e4
"""Beyond it, a halting score is zero or one."""

STEEP = 8
"""To what power of the wish for more the odds of halting grow."""


@register("avit")
@dataclass(frozen=True)
class AViT(Base):
    """Adaptive tokens: after every block a token's halting score is
    `sigmoid(gamma * x[..., 0] + beta)` of its first channel; it leaves when its scores add up to
    `1 - eps`. What is read out is the sum of the class tokens after all blocks, weighted by their
    halting scores.

    flops: the share of the dense FLOPs to reach; after a training, `beta` is moved until it is.
    gamma, beta: where training starts.
    eps: how much of one a token need not have.
    depth: the block, from 1, at which tokens are to halt on average: the mean of a normal
        distribution that the mean halting scores are drawn to (default: `flops` of the depth).
    ponder, prior: how much the blocks that tokens go through, and the distance from that
        distribution, count beside the loss on labels.
    """

    ragged: ClassVar[bool] = True

    flops: float | None = None
    gamma: float = 5.0
    beta: float = -10.0
    eps: float = 0.01
    depth: float | None = None
    ponder: float = 5e-4
    prior: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flops is not None:
            check_share(self.flops)
        check_number("gamma", self.gamma, -FAR, FAR)
        check_number("beta", self.beta, -FAR, FAR)
        check_number("eps", self.eps, 1e-6, 0.5)
        if self.depth is not None:
            check_number("depth", self.depth, 1, 512)
        check_number("ponder", self.ponder, 0, 1e9)
        check_number("prior", self.prior, 0, 1e9)

    @property
    def proportional(self) -> bool:
        return False

    def check(self, layout: Layout) -> None:
        if not layout.class_token:
            raise MethodError("A-ViT reads out class tokens: the model has none")
        if layout.reads_patches:
            raise MethodError("A-ViT reads out class tokens: the model reads out its patches")

    def learn(self, depth: int, width: int) -> "Halting":
        return Halting(self, depth)


class Halting(Learned):
    """What A-ViT learns: how a first channel becomes a halting score."""

    def __init__(self, method: AViT, depth: int) -> None:
        super().__init__()
        self.method, self.depth = method, depth
        self.gamma = nn.Parameter(torch.tensor([float(method.gamma)]))
        self.beta = nn.Parameter(torch.tensor([float(method.beta)]))

    def constrain(self) -> None:
        with torch.no_grad():
            for value in self.parameters():
                value.clamp_(-FAR, FAR)

    def scale(self, by: float) -> None:
        """Shift the bias, so that the odds of halting change steeply with `by`."""
        with torch.no_grad():
            self.beta.add_(STEEP * math.log(by) if by > 0 else -2 * FAR)
        self.constrain()

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        last = layout.depth - 1
        score, eps = self.score, self.method.eps
        return tuple(
            Halt(removes=None, score=score, eps=eps, last=block == last)
            for block in range(layout.depth)
        )

    def score(self, x: Tensor) -> Tensor:
        """`[B, n]`: the halting scores of tokens, of their first channel `x[B, n]`."""
        return (self.gamma * x + self.beta).sigmoid()

    def loss(self, run: Pass) -> Tensor:
        notes = _notes(run.states[-1])
        scores = distributed.mean(torch.stack(notes.scores))
        share = (scores / scores.sum().clamp(min=1e-6)).clamp(0.01, 0.99)
        at = self.method.depth or (self.method.flops or 1.0) * self.depth
        blocks = torch.arange(1, self.depth + 1, device=scores.device, dtype=scores.dtype)
        prior = (-0.5 * (blocks - at) ** 2).softmax(dim=0)
        apart = (prior * (prior.clamp(min=1e-6).log() - share.log())).sum()
        return self.method.prior * apart + self.method.ponder * notes.ponder

    def figures(self, run: Pass) -> dict[str, Any]:
        ponder = float(_notes(run.states[-1]).ponder.detach())
        return {"ponder": ponder, "tokens": mean_counts(run.states[1:])}


@dataclass(frozen=True, eq=False)
class Halted:
    """A-ViT's notes on its tokens: scores so far, and what is read out.

    total: `[b, n]` the scores that each token has added up.
    out: `[B * prefix, C]` the weighted sum of every prefix token so far.
    ponder: the mean over tokens of the blocks that they went through, and of what was left to one
        when they stopped.
    scores: for every block the mean score of patches, zero where they had stopped.
    """

    total: Tensor
    out: Tensor
    ponder: Tensor
    scores: tuple[Tensor, ...] = ()

    @classmethod
    def start(cls, x: Tensor, state: TokenState) -> "Halted":
        """The notes before the first block, in which nothing has been added up."""
        total = torch.zeros(x.shape[:2], dtype=state.dtype, device=x.device)
        out = total.new_zeros(state.batch * state.prefix, x.shape[2])
        return cls(total, out, total.new_zeros(()))


@dataclass(frozen=True, eq=False)
class Halt(Step):
    """After a block: what has had enough leaves, but one patch of every image, and what is read out
    grows.

    score: of the first channels of tokens.
    eps: how much of one a token need not have.
    last: whether all tokens stop here.
    """

    score: Callable[[Tensor], Tensor] = field(kw_only=True)
    eps: float = field(kw_only=True)
    last: bool = field(kw_only=True)

    def leave(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        before = _notes(state) if state.notes else Halted.start(x, state)
        fixed = state.places() < state.prefix
        notes = self._add(x, state, before, fixed)
        if self.last:
            x = x.masked_scatter(fixed.unsqueeze(-1), notes.out.to(x.dtype))
            return x, state.noting(notes)
        room = (1 - notes.total - self.eps).detach()
        change = state.drop_below(room, NOTHING)
        x, after = state.apply(x, change)
        return x, after.noting(replace(notes, total=change.take(notes.total)))

    def _add(self, x: Tensor, state: TokenState, before: Halted, fixed: Tensor) -> Halted:
        """The notes with what this block adds; `fixed[B, n]` are prefix tokens."""
        score = self.score(x[..., 0].to(before.total.dtype))
        room = 1 - before.total
        running = (state.presence() > 0.5) & (room > self.eps)
        stops = running & (self.last | (room - score <= self.eps))
        weight = torch.where(stops, room, score) * running
        total = before.total + torch.where(stops, torch.ones_like(room), score) * running
        spent = (running + weight * stops).sum() / (state.batch * state.tokens)
        patches = state.batch * (state.tokens - state.prefix)
        mean = (score * running * ~fixed).sum() / max(patches, 1)
        out = before.out + weight[fixed].unsqueeze(-1) * x[fixed].to(before.out.dtype)
        return Halted(total, out, before.ponder + spent, (*before.scores, mean))


def _notes(state: TokenState) -> Halted:
    notes = state.notes
    assert isinstance(notes, Halted)  # every block writes them
    return notes
