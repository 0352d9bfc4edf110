"""LTMP: learned thresholds decide what merges and what is dropped, image by image."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.methods import distributed
from vitfold.methods.base import Base
from vitfold.methods.checks import check_choice, check_cue, check_number, check_share, check_switch
from vitfold.methods.learned import Learned, Pass, mean_counts
from vitfold.methods.mergedrop import MergeDrop
from vitfold.methods.recipe import MethodRecipe
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Received, Step, View
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import Change, TokenState

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
        """What a block does, `merge` and `prune`, in its order."""
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

    def loss(self, run: Pass) -> Tensor:
        if self.method.flops is None:
            raise MethodError("LTMP is trained for a share of the FLOPs: give flops")
        return self.method.strength * (self.share(run) - self.method.flops) ** 2

    def share(self, run: Pass) -> Tensor:
        """The share of the FLOPs that a masked pass would have cost, in blocks with plain MLPs four
        times as wide as tokens."""
        n, d = run.states[0].tokens, run.width
        left = torch.stack([state.left().mean() / n for state in run.states])
        cost = [
            2 * before * n * d**2 + (before * n) ** 2 * d + 4 * after * n * d**2
            for before, after in itertools.pairwise(distributed.mean(left).unbind())
        ]
        return torch.stack(cost).mean() / (6 * n * d**2 + n**2 * d)

    def figures(self, run: Pass) -> dict[str, Any]:
        levels = {f"{act}_threshold": self.of(act).tolist() for act in self.method.acts}
        share = float(self.share(run).detach())
        tokens = mean_counts(run.states[1:])
        return {"share_asked": self.method.flops, "share": share, **levels, "tokens": tokens}

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        return tuple(self._step(block) for block in range(layout.depth))

    def _step(self, block: int) -> Step | None:
        """Nothing, and no look at tokens either, where thresholds let all pass."""
        acts = tuple(act for act in self.method.acts if self._acts(act, block))
        if not acts:
            return None
        cue = self.method.cue if "merge" in acts else None
        received: Received | None = "all" if "prune" in acts else None
        levels = tuple((act, self.of(act)[block]) for act in acts)
        return Beyond(cue, None, received=received, levels=levels, soft=self.method.temperature)

    def _acts(self, act: str, block: int) -> bool:
        return act in self.method.acts and (self.training or self.level(act, block) != IDLE[act])

    def of(self, act: str) -> Tensor:
        """The thresholds of all blocks for merging or for pruning."""
        values: Tensor = getattr(self, act)
        return values

    def level(self, act: str, block: int) -> float:
        """One of them, as it is."""
        return float(self.of(act).detach()[block])


@dataclass(frozen=True)
class Beyond(Step):
    """Merges what resembles each other by more than a threshold, drops what receives no more
    attention than another.

    levels: the thresholds, in the order in which they act.
    soft: how far from them tokens have a say in their gradients.
    """

    levels: tuple[tuple[str, Tensor], ...] = field(kw_only=True)
    soft: float = field(kw_only=True)

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """Scores of one image at a time need little memory."""
        return state.alone(x) if self.received else (x, state)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        change: Change | None = None
        for act, level in self.levels:
            if act == "merge":
                change = state.merge_above(view.cue, level, self.soft, after=change)
            elif view.received is not None:
                change = state.drop_below(view.received, level, self.soft, after=change)
        return (x, state) if change is None else state.apply(x, change)
