"""How alike the tokens are that merge with each other."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone, fold, fold_with
from vitfold.methods import Base, Method, Step, create_method
from vitfold.methods.base import learns, named
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import TokenMap, take
from vitfold.tools.measure import Progress
from vitfold.tools.validate import Batch

Seen = dict[int, list[float]]


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
        found: Any = step.match(metric, ledger, *received)
        self.see(block, metric, found)
        return found


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
    made = {r: create_method(method, {**(options or {}), "r": r}) for r in rs}
    return {r: _one(model, images, each, progress) for r, each in made.items()}


def _one(
    model: nn.Module, images: Sequence[Tensor], method: Base, progress: Progress
) -> list[float | None]:
    ours = fold(clone(model).eval(), method)
    record = fold_of(ours)
    seen: Seen = {}
    fold_with(ours, Watched(inner=method, see=functools.partial(_note, seen)), record.schedule)
    device = next(ours.parameters()).device
    with torch.inference_mode():
        for pixels in images:
            ours(pixels.to(device))
            progress()
    depth = len(record.schedule)
    return [sum(seen[b]) / len(seen[b]) if seen.get(b) else None for b in range(depth)]


def _note(seen: Seen, block: int, metric: Tensor, found: TokenMap) -> None:
    """The cosines of this batch's pairs."""
    place = found.keep.gather(1, found.into.clamp(min=0))
    cosines = F.cosine_similarity(take(metric, found.gone), take(metric, place), dim=-1)
    seen.setdefault(block, []).extend(cosines[found.into >= 0].double().flatten().tolist())
