"""Heights for WardCut, from images without labels: one pass through the model for each guess."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitfold.errors import DataError, MethodError
from vitfold.folding.calls import fold_of, folds, trunk_inputs
from vitfold.folding.families import find
from vitfold.folding.flops import CLOSE, NEAR, Tried, count
from vitfold.folding.fold import clone, fold
from vitfold.folding.inputs import Inputs, batches_in, images_in
from vitfold.methods.base import Base
from vitfold.methods.steps import Plan, Step
from vitfold.methods.ward import Ward
from vitfold.methods.wardcut import HIGHEST, Heights, WardCut
from vitfold.tokens.layout import Layout
from vitfold.tokens.modes import evaluating
from vitfold.tokens.packed import Packed
from vitfold.tokens.tokenmap import TokenMap
from vitfold.tools.measure import Progress

ModelT = TypeVar("ModelT", bound=nn.Module)

TRIES = 8


def calibrate(
    model: ModelT, images: Inputs | Iterable[Any], *, progress: Progress = lambda: None
) -> ModelT:
    """Find the heights of a model that WardCut is on, in place: those at which `images` cost the
    share of the dense FLOPs that it was folded for, and in every block as many of their tokens
    merge, on average, as Ward would merge of each. Returns it.

    images: some hundreds, of the kind that it will see, prepared for the model: `[B, C, H, W]`, or
        batches of them, with labels or without.
    """
    record = next(iter(folds(model)), None)
    method, heights = (record.method, record.learned) if record else (None, None)
    if not (isinstance(method, WardCut) and isinstance(heights, Heights)):
        raise MethodError(
            f"{method or type(model).__name__} has no heights: calibrate takes a model with "
            "WardCut, vitfold.fold(model, 'wardcut', flops=0.6)"
        )
    target = method.flops
    assert target is not None  # it was checked when the method was made
    batches = [images_in(batch) for batch in batches_in(images)]
    if not sum(map(len, batches)):
        raise DataError("no images to calibrate on: give some")
    dense = clone(model)
    trunk = find(dense).trunk
    seen = torch.cat(batches).to(next(trunk.parameters()).device)
    levels: dict[float, list[float]] = {}

    def cost(asked: float) -> float:
        """The share of these images where as many tokens merge, on average, as for that one."""
        cut = Cutting(method, _means(dense, method, asked))
        fold(dense, cut)
        share = count(lambda: trunk(**given)) / whole
        levels[asked] = cut.heights
        progress()
        return share

    with torch.inference_mode(), evaluating(dense):
        given = trunk_inputs(fold(dense, Ward(r=0)), seen)
        whole = count(lambda: trunk(**given))  # of r=0, which costs what the dense model does
        tried, asked = Tried[float](target, cost), target
        for _ in range(TRIES):
            try:
                off = tried.off(asked)
            except MethodError:  # Ward cannot reach that one
                if not tried.costs:
                    raise
                break
            if abs(off) <= CLOSE:
                break
            # Images of many tokens cost more than those of few save: ask for a little less.
            asked = min(max(asked - off, 0.01), 1.0)
    if tried.miss > NEAR:
        raise MethodError(f"flops={target} cannot be reached: the nearest is {tried.reached:.3f}")
    with torch.no_grad():
        heights.height.copy_(torch.tensor(levels[tried.best]))
    return model


def _means(model: nn.Module, method: WardCut, share: float) -> tuple[int, ...]:
    """How many tokens of an image merge in every block where all images merge as many."""
    ward = Ward(
        flops=share,
        inflection=method.inflection,
        cue=method.cue,
        proportional=method.proportional,
    )
    return fold_of(fold(model, ward)).schedule


@dataclass(frozen=True)
class Cutting(Base):
    """Cuts every block where so many merge on average over a batch, and keeps the heights."""

    ragged = True

    method: WardCut
    means: tuple[int, ...]
    heights: list[float] = field(default_factory=list)

    @property
    def proportional(self) -> bool:
        """As it will be."""
        return self.method.proportional

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """All blocks, from the first on."""
        self.heights[:] = [0.0] * layout.depth
        return tuple(
            Step(self.method.cue, 0, functools.partial(self._match, block)) if mean else None
            for block, mean in enumerate(self.means)
        )

    def _match(self, block: int, metric: Tensor, books: Packed) -> TokenMap:
        pairs = self.method.distances(metric, books)
        nearest = pairs.value[pairs.value.isfinite()].sort(descending=True).values
        number = round(self.means[block] * len(books.lengths))
        beyond = -float(nearest[number]) if number < len(nearest) else HIGHEST
        self.heights[block] = min(max(beyond, 0.0), HIGHEST)
        return pairs.above(-self.heights[block], metric.shape[1])
