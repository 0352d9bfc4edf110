"""How alike the tokens are that merge with each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone, fold, fold_with
from vitfold.methods import Base, Method, Step, create_method
from vitfold.methods.base import learns
from vitfold.methods.registry import named
from vitfold.methods.step import Plan, View
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import take
from vitfold.tools.measure import Progress
from vitfold.tools.validate import Batch

Cosines = dict[int, list[float]]
"""By block: one for every pair that merged."""


@dataclass(frozen=True)
class Watched(Base):
    """A method whose every merge is measured.

    inner: the method.
    cosines: of every block, those of the pairs that merged so far.
    """

    restores: ClassVar[bool] = True  # where the watched method does, which was folded before

    inner: Any = None
    cosines: Cosines = field(default_factory=dict, compare=False)

    @property
    def proportional(self) -> bool:
        """Whether the watched method weighs tokens by size in attention."""
        return bool(self.inner.proportional)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """The inner method's steps, each watched."""
        steps = self.inner.plan(layout, schedule)
        return tuple(
            step and WatchedStep(**_data(step), inner=step, cosines=self.cosines.setdefault(b, []))
            for b, step in enumerate(steps)
        )


@dataclass(frozen=True)
class WatchedStep(Step):
    """A step that notes how similar the tokens are that it merges."""

    inner: Any = field(kw_only=True)
    cosines: list[float] = field(kw_only=True, compare=False)

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """The watched step before the block; what merges is compared by the residual stream."""
        return self._noted(state, x.detach(), self.inner.enter(x, state))

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """The watched step after attention; what merges there is compared by its cue."""
        return self._noted(state, view.cue, self.inner.reduce(x, state, view))

    def leave(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """The watched step after the block."""
        left: tuple[Tensor, TokenState] = self.inner.leave(x, state)
        return left

    def _noted(
        self, before: TokenState, metric: Tensor, result: tuple[Tensor, TokenState]
    ) -> tuple[Tensor, TokenState]:
        for step in result[1].maps[len(before.maps) :]:
            place = step.keep.gather(1, step.into.clamp(min=0))
            alike = F.cosine_similarity(take(metric, step.gone), take(metric, place), dim=-1)
            self.cosines.extend(alike[step.into >= 0].double().flatten().tolist())
        return result


def _data(step: Step) -> dict[str, Any]:
    """The fields that every step has, by which a run knows beforehand what it needs."""
    return {f.name: getattr(step, f.name) for f in fields(Step)}


def merged_similarity(
    model: nn.Module,
    batches: Iterable[Batch],
    rs: Sequence[int],
    method: str = "tome",
    options: dict[str, Any] | None = None,
    progress: Progress = lambda: None,
) -> dict[int, list[float | None]]:
    """For every `r`, by block: the mean cosine of a merged token and the one that it goes into.

    None for blocks that merge nothing.
    """
    kind = named(method)
    if learns(kind) or not issubclass(kind, Method):
        raise MethodError(f"{method} takes no r, or is trained: give a method that merges r tokens")
    images = [pixels for pixels, _ in batches]
    methods = {r: create_method(method, {**(options or {}), "r": r}) for r in rs}
    return {r: _one(model, images, each, progress) for r, each in methods.items()}


def _one(
    model: nn.Module, images: Sequence[Tensor], method: Base, progress: Progress
) -> list[float | None]:
    ours = fold(clone(model).eval(), method)
    record = fold_of(ours)
    cosines: Cosines = {}
    fold_with(ours, Watched(inner=method, cosines=cosines), record.schedule)
    device = next(ours.parameters()).device
    with torch.inference_mode():
        for pixels in images:
            ours(pixels.to(device))
            progress()
    blocks = [cosines.get(block) for block in range(len(record.schedule))]
    return [sum(some) / len(some) if some else None for some in blocks]
