"""LTMP: learned thresholds decide what merges and what is dropped, image by image."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.methods import distributed
from vitfold.methods.base import Base, register
from vitfold.methods.checks import check_choice, check_cue, check_number, check_share, check_switch
from vitfold.methods.mergedrop import MergeDrop
from vitfold.methods.recipe import MethodRecipe
from vitfold.methods.steps import Learned, Pass, Step
from vitfold.tokens import ragged, threshold
from vitfold.tokens.layout import Layout
from vitfold.tokens.masked import Mark, Masked
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import TokenMap, take

ORDERS = ("merge_first", "prune_first")

IDLE = {"merge": 1.0, "prune": 0.0}
"""Thresholds that let all tokens pass."""


@register("ltmp")
@dataclass(frozen=True)
class LTMP(Base):
    """Learned thresholds merging and pruning: between attention and MLP, every even token that
    resembles its best odd one by more than the block's threshold merges into it, and what then
    receives no more attention than the other threshold is dropped.

    merge, prune: what is done.
    order: which comes first.
    flops: the share of the dense FLOPs that the thresholds are trained for.
    merge_threshold, prune_threshold: where training starts.
    temperature: how far from a threshold tokens still have a say in its gradient.
    strength: how much a miss of `flops` counts beside the loss on labels.
    cue: what tokens are compared by.
    proportional: whether a token of size s counts s times in attention.
    """

    ragged: ClassVar[bool] = True
    training: ClassVar[MethodRecipe] = MethodRecipe(
        epochs=1,
        smoothing=0.1,
        optimizer={"opt": "momentum", "weight_decay": 0.0},
        rates={"merge": 5e-3, "prune": 5e-6},
        freeze="model",
        log_every=1,
    )

    merge: bool = True
    prune: bool = True
    order: str = "merge_first"
    flops: float | None = None
    merge_threshold: float = 0.9
    prune_threshold: float = 0.0
    temperature: float = 0.1
    strength: float = 10.0
    cue: str = "k"
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("merge", "prune", "proportional"):
            check_switch(name, getattr(self, name))
        if not (self.merge or self.prune):
            raise MethodError("merge=False, prune=False: nothing is left to do; switch one on")
        check_choice("order", self.order, ORDERS)
        if self.flops is not None:
            check_share(self.flops)
        check_number("merge_threshold", self.merge_threshold, 0, 1)
        check_number("prune_threshold", self.prune_threshold, 0, 1)
        check_number("temperature", self.temperature, 1e-6, 1e6)
        check_number("strength", self.strength, 0, 1e9)
        check_cue(self.cue)

    @property
    def acts(self) -> list[str]:
        """What is done, in its order."""
        order = ("merge", "prune") if self.order == "merge_first" else ("prune", "merge")
        return [act for act in order if getattr(self, act)]

    def fixed(self, merged: Sequence[int], dropped: Sequence[int]) -> MergeDrop:
        return MergeDrop(
            r=list(merged),
            drop=list(dropped),
            drop_first=self.order == "prune_first",
            cue=self.cue,
            proportional=self.proportional,
        )

    def learn(self, depth: int, width: int) -> "Thresholds":
        return Thresholds(self, depth)


class Thresholds(Learned):
    """What LTMP learns: up to two numbers a block, in [0, 1].

    merge: tokens that resemble their partner more than this merge.
    prune: tokens that receive no more attention than this leave.
    """

    def __init__(self, method: LTMP, depth: int) -> None:
        super().__init__()
        self.method = method
        for act in ("merge", "prune"):
            start = torch.full((depth,), float(getattr(method, f"{act}_threshold")))
            self.register_parameter(act, nn.Parameter(start) if act in method.acts else None)

    def constrain(self) -> None:
        with torch.no_grad():
            for values in self.parameters():
                values.clamp_(0, 1)

    def scale(self, by: float) -> None:
        with torch.no_grad():
            if "merge" in self.method.acts:
                self.of("merge").sub_(1).mul_(by).add_(1)
            if "prune" in self.method.acts:
                self.of("prune").mul_(by)
        self.constrain()

    def loss(self, seen: Pass) -> Tensor:
        if self.method.flops is None:
            raise MethodError("LTMP is trained for a share of the FLOPs: give flops")
        return self.method.strength * (self.share(seen) - self.method.flops) ** 2

    def share(self, seen: Pass) -> Tensor:
        """The share of the FLOPs that a masked pass would have cost, in blocks with plain MLPs four
        times as wide as tokens."""
        n, d = seen.books[0].tokens, seen.width
        books = [book for book in seen.books if isinstance(book, Masked)]
        means = distributed.mean(torch.stack([book.presence.mean() for book in books]))
        cost = [
            2 * before * n * d**2 + (before * n) ** 2 * d + 4 * after * n * d**2
            for before, after in itertools.pairwise(means.unbind())
        ]
        return torch.stack(cost).mean() / (6 * n * d**2 + n**2 * d)

    def figures(self, seen: Pass) -> dict[str, Any]:
        books = [book for book in seen.books[1:] if isinstance(book, Masked)]
        means = [book.here.sum(1).double().mean() for book in books]
        levels = {f"{act}_threshold": self.of(act).tolist() for act in self.method.acts}
        share = float(self.share(seen).detach())
        tokens = torch.stack(means).tolist()
        return {"share_asked": self.method.flops, "share": share, **levels, "tokens": tokens}

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        return tuple(self._step(block) for block in range(layout.depth))

    def _step(self, block: int) -> Step | None:
        """Nothing, and no look at tokens either, where thresholds let all pass."""
        merges, prunes = self._acts("merge", block), self._acts("prune", block)
        if not (merges or prunes):
            return None
        cue = self.method.cue if merges else "x_pre"  # nothing is compared
        return Step(cue, 0, functools.partial(self._match, block), received=prunes)

    def _acts(self, act: str, block: int) -> bool:
        return act in self.method.acts and (self.training or self.level(act, block) != IDLE[act])

    def of(self, act: str) -> Tensor:
        """The thresholds of all blocks for merging or pruning."""
        values: Tensor = getattr(self, act)
        return values

    def level(self, act: str, block: int) -> float:
        """One of them, as it is."""
        return float(self.of(act).detach()[block])

    def _match(
        self, block: int, metric: Tensor, books: Ledger, received: Tensor | None = None
    ) -> TokenMap | Mark:
        # Without pruning, scores are of no meaning.
        scores = metric[..., 0].abs() if received is None else received
        if isinstance(books, Masked):
            return self._masked(block, metric, scores, books)
        if isinstance(books, Packed):
            return self._packed(block, metric, scores, books)
        raise MethodError("LTMP keeps another number of tokens for every image")

    def _packed(self, block: int, metric: Tensor, scores: Tensor, books: Packed) -> TokenMap:
        """The tokens that really leave."""
        lengths = books.numbers(metric.device)
        whole = TokenMap.identity(1, books.now, metric.device)
        for act in self.method.acts:
            level = self.level(act, block)
            if level == IDLE[act]:
                continue
            if act == "merge":
                step = threshold.merge(metric, lengths, books.prefix, level)
            else:
                step = threshold.prune(scores, lengths, books.prefix, level)
            lengths = ragged.left(lengths, step.keep[0])
            metric, scores = take(metric, step.keep), threshold.fold_scores(scores, step)
            whole = whole.then(step)
        return whole

    def _masked(self, block: int, metric: Tensor, scores: Tensor, books: Masked) -> Mark:
        """The same as a mask, in which thresholds have gradients."""
        here, whole, soft = books.here, Mark.nothing(books.presence), self.method.temperature
        for act in self.method.acts:
            level = self.of(act)[block]
            if act == "merge":
                step = threshold.merge_masked(metric, here, books.prefix, level, soft)
                scores = threshold.fold_scores_masked(scores, step)
            else:
                step = threshold.prune_masked(scores, here, books.prefix, level, soft)
            here, whole = here & step.stays, whole.then(step)
        return whole
