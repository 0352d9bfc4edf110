"""A-ViT: every token adds up halting scores from block to block, and stops when it has enough."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.methods import distributed
from vitfold.methods.base import Base, register
from vitfold.methods.checks import check_number, check_share
from vitfold.methods.steps import Act, Learned, Pass
from vitfold.tokens import threshold
from vitfold.tokens.layout import Layout
from vitfold.tokens.masked import Masked
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import Ledger

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


@dataclass(frozen=True, eq=False)
class Halted:
    """What A-ViT writes into the books.

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
        """The odds of halting, steeply."""
        with torch.no_grad():
            self.beta.add_(STEEP * math.log(by) if by > 0 else -2 * FAR)
        self.constrain()

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Act, ...]:
        return tuple(
            Act(functools.partial(self._halt, block == layout.depth - 1))
            for block in range(layout.depth)
        )

    def _halt(self, last: bool, x: Tensor, books: Ledger) -> tuple[Tensor, Ledger]:
        """After a block: what has had enough leaves, what is read out grows."""
        if not isinstance(books, Packed | Masked):
            raise MethodError("A-ViT keeps another number of tokens for every image")
        if isinstance(books, Packed):
            x = books.pack(x)
        fixed, here = books.places(x) < books.prefix, books.present(x)
        before = books.notes if isinstance(books.notes, Halted) else _start(x, fixed)
        channel = x[..., 0].to(before.total.dtype)
        score = (self.gamma * channel + self.beta).sigmoid()
        room = 1 - before.total
        running = here & (room > self.method.eps)
        stops = running & (last | (room - score <= self.method.eps))
        weight = torch.where(stops, room, score) * running
        total = before.total + torch.where(stops, torch.ones_like(room), score) * running
        images = len(before.out) // books.prefix
        patches = images * (books.tokens - books.prefix)
        spent = (running + weight * stops).sum() / (images * books.tokens)
        mean = (score * running * ~fixed).sum() / max(patches, 1)
        out = before.out + weight[fixed].unsqueeze(-1) * x[fixed].to(before.out.dtype)
        notes = Halted(total, out, before.ponder + spent, (*before.scores, mean))
        if last:
            x = x.masked_scatter(fixed.unsqueeze(-1), out.to(x.dtype))
            return books.unpacked(x), replace(books, notes=notes)
        return self._leave(x, books, notes, (1 - total - self.method.eps).detach())

    def _leave(
        self, x: Tensor, books: Packed | Masked, notes: Halted, room: Tensor
    ) -> tuple[Tensor, Ledger]:
        """What has no room for more leaves, but one patch of every image."""
        if isinstance(books, Masked):
            level = torch.tensor(NOTHING, device=x.device, dtype=room.dtype)
            mark = threshold.prune_masked(room, books.here, books.prefix, level, 1.0)
            mark = replace(mark, keep=mark.keep.detach())
            x, after = books.reduce(x, mark)
            return x, replace(after, notes=notes)
        step = threshold.prune(room, books.numbers(x.device), books.prefix, NOTHING)
        x, left = books.reduce(x, step)
        return x, replace(left, notes=replace(notes, total=notes.total.gather(1, step.keep)))

    def loss(self, seen: Pass) -> Tensor:
        notes = _last(seen)
        scores = distributed.mean(torch.stack(notes.scores))
        share = (scores / scores.sum().clamp(min=1e-6)).clamp(0.01, 0.99)
        at = self.method.depth or (self.method.flops or 1.0) * self.depth
        blocks = torch.arange(1, self.depth + 1, device=scores.device, dtype=scores.dtype)
        prior = (-0.5 * (blocks - at) ** 2).softmax(dim=0)
        apart = (prior * (prior.clamp(min=1e-6).log() - share.log())).sum()
        return self.method.prior * apart + self.method.ponder * notes.ponder

    def figures(self, seen: Pass) -> dict[str, Any]:
        books = [book for book in seen.books[1:] if isinstance(book, Masked)]
        tokens = [float(book.here.sum(1).double().mean()) for book in books]
        return {"ponder": float(_last(seen).ponder.detach()), "tokens": tokens}


def _start(x: Tensor, fixed: Tensor) -> Halted:
    """Nothing has been added up."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(x.shape[:2], dtype=dtype, device=x.device)
    rows = int(fixed.sum())
    return Halted(total, total.new_zeros(rows, x.shape[2]), total.new_zeros(()))


def _last(seen: Pass) -> Halted:
    notes = seen.books[-1].notes
    assert isinstance(notes, Halted)  # every block writes them
    return notes
