"""How alike the tokens are that merge with each other."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.calls import folded
from vitfold.folding.fold import clone, fold, fold_with
from vitfold.methods import Base, Method, Step, create_method
from vitfold.methods.base import learns, named
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import TokenMap, take
from vitfold.tools.measure import Progress
from vitfold.tools.validate import Batch

Cosines = dict[int, list[float]]
"""By block: one for every pair that merged."""


@dataclass(frozen=True)
class Watched(Base):
    """A method whose every match is looked at."""

    inner: Any = None
    see: Any = field(default=None, compare=False)

    @property
    def proportional(self) -> bool:
        """As the inner method says."""
        return bool(self.inner.proportional)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        """The inner method's steps, looked at."""
        steps = self.inner.plan(layout, schedule)
        return tuple(step and self._watched(step, block) for block, step in enumerate(steps))

    def _watched(self, step: Step, block: int) -> Step:
        return replace(step, match=functools.partial(self._match, step, block))

    def _match(
        self, step: Step, block: int, metric: Tensor, ledger: Ledger, *received: Tensor
    ) -> Any:
        match: Any = step.match(metric, ledger, *received)
        self.see(block, metric, match)
        return match


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
    record = folded(ours)
    cosines: Cosines = {}
    fold_with(ours, Watched(inner=method, see=functools.partial(_note, cosines)), record.schedule)
    device = next(ours.parameters()).device
    with torch.inference_mode():
        for pixels in images:
            ours(pixels.to(device))
            progress()
    depth = len(record.schedule)
    return [_mean(cosines.get(block, [])) for block in range(depth)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _note(cosines: Cosines, block: int, metric: Tensor, match: TokenMap) -> None:
    """The cosines of this batch's pairs."""
    place = match.keep.gather(1, match.into.clamp(min=0))
    pairs = F.cosine_similarity(take(metric, match.gone), take(metric, place), dim=-1)
    cosines.setdefault(block, []).extend(pairs[match.into >= 0].double().flatten().tolist())
