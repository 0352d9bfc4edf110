"""Calibration on unlabelled images, one pass through the model for each guess: of what the output
notices of tokens, of the heights at which they merge, and of where other methods remove them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitfold.errors import DataError, MethodError
from vitfold.folding.calls import Fold, fold_of, folds, trunk_inputs
from vitfold.folding.families import find
from vitfold.folding.fit import CLOSE, NEAR, Fit
from vitfold.folding.flops import Schedule, count
from vitfold.folding.fold import clone, fold, fold_to_learn
from vitfold.folding.inputs import Inputs, batches_in, images_in
from vitfold.methods.base import Base, Method, learns
from vitfold.methods.fisher import Fisher, directed
from vitfold.methods.step import Plan, Step, View
from vitfold.methods.ward import Ward
from vitfold.methods.wardcut import HIGHEST, Heights, WardCut
from vitfold.tokens.layout import Layout
from vitfold.tokens.modes import evaluating
from vitfold.tokens.state import TokenState
from vitfold.tools.measure import Progress
from vitfold.tools.placing import Weights, idle, placed, schedule_of, searched, tries
from vitfold.tools.sensitivity import directions, fold_along, is_directed, set_basis

ModelT = TypeVar("ModelT", bound=nn.Module)

PASSES = 8
"""How often the images go through the model for heights, at most; `progress` is called after
each."""


def calibrate(
    model: ModelT,
    images: Inputs | Iterable[Any],
    *,
    cues: Sequence[str] = (),
    place: bool = False,
    progress: Progress = lambda: None,
) -> ModelT:
    """Find, in place, what a method takes from images without labels. Returns the model.

    Of Fisher and FisherCut, first the directions in which the output notices tokens. Of WardCut and
    FisherCut, the heights: those at which `images` cost the share of the dense FLOPs that it was
    folded for, and in every block as many of their tokens merge, on average, as Ward would merge of
    each. Of any other method with a share, the numbers for every block that cost this share, and
    with which the model says most nearly what it says dense; they are its `r` then.

    images: some hundreds, of the kind that it will see, prepared for the model: `[B, C, H, W]`, or
        batches of them, with labels or without.
    cues: what tokens may be compared by; the best is kept (default: what the method says).
    place: of WardCut and FisherCut, look first for where tokens leave, as for other methods; then
        as many merge in every block, on average.
    """
    record = _record(model)
    method = record.method
    pixels = _pixels(model, images)
    dense = clone(model)
    if cues and (is_directed(method) or not isinstance(method, Method)):
        raise MethodError(f"{type(method).__name__} compares by one cue: leave out cues")
    basis = directions(dense, pixels, progress) if is_directed(method) else None
    if isinstance(method, Method):
        if method.flops is not None:
            method = placed(dense, method, pixels, cues, progress, basis)
        return fold_along(model, method, basis)
    heights = record.learned
    assert isinstance(method, WardCut)
    assert isinstance(heights, Heights)
    with torch.inference_mode(), evaluating(dense):
        weights = _placing(dense, method, pixels, progress, basis) if place else None
        levels = _fit_heights(dense, method, weights, pixels, progress, basis)
    with torch.no_grad():
        heights.height.copy_(torch.tensor(levels))
    set_basis(model, basis)
    return model


def passes(method: Base, depth: int, cues: int = 0, place: bool = False) -> int:
    """How often the images go through a model of so many blocks, at most."""
    looks = int(is_directed(method))
    if isinstance(method, Method):
        return looks + (tries(depth, cues) if method.flops is not None else 0)
    return looks + PASSES + (tries(depth) if place else 0)


def _record(model: nn.Module) -> Fold:
    """How a model is folded; refused where its method takes nothing from images."""
    record = next(iter(folds(model)), None)
    method = record.method if record else None
    if record is None or not (isinstance(method, WardCut | Fisher) or _is_placed(method)):
        raise MethodError(
            f"{method or type(model).__name__} has nothing to calibrate: give a model that is "
            "folded for a share of the FLOPs, vitfold.fold(model, 'ward', flops=0.6), or with "
            "WardCut"
        )
    return record


def _is_placed(method: Base | None) -> bool:
    """Whether a method has a share, and spreads what leaves as one likes."""
    if not isinstance(method, Method) or method.flops is None:
        return False
    return type(method).spread is Method.spread and not learns(type(method))


def _pixels(model: nn.Module, images: Inputs | Iterable[Any]) -> Tensor:
    """`[N, C, H, W]`, where the model is."""
    batches = [images_in(batch) for batch in batches_in(images)]
    if not sum(map(len, batches)):
        raise DataError("no images to calibrate on: give some")
    return torch.cat(batches).to(next(find(model).trunk.parameters()).device)


def _fit_heights(
    model: nn.Module,
    method: WardCut,
    weights: Weights | None,
    images: Tensor,
    progress: Progress,
    basis: Tensor | None,
) -> list[float]:
    """The heights at which these images cost that share. What is varied is by how much Ward would
    make each of them cheaper: as many tokens merge then, on average."""
    trunk, share = find(model).trunk, float(method.flops or 1)
    inputs = trunk_inputs(fold(model, Ward(r=0)), images)
    dense = count(lambda: trunk(**inputs))  # of r=0, which costs what the dense model does
    aim = tuple if basis is None else functools.partial(directed, basis=basis)
    levels: dict[float, list[float]] = {}

    def cost(saving: float) -> float:
        cut = Cutting(method, _means(model, method, weights, round(1 - saving, 9)), aim)
        fold(model, cut)
        part = count(lambda: trunk(**inputs)) / dense
        levels[saving] = cut.heights
        progress()
        return part

    fit = Fit[float](share, cost)
    fit.costs[0.0], levels[0.0] = 1.0, [0.0] * len(find(model).blocks)
    try:
        fit.along(lambda saving: saving, 1 - share, 0.99, tries=PASSES, close=CLOSE)
    except MethodError:  # Ward cannot save so much
        if len(levels) == 1:
            raise
    if fit.miss > NEAR:
        raise MethodError(f"flops={share} cannot be reached: the nearest is {fit.nearest:.3f}")
    return levels[fit.best]


def _placing(
    model: nn.Module, method: WardCut, images: Tensor, progress: Progress, basis: Tensor | None
) -> Weights:
    """How what leaves is best spread over the blocks, where all images lose as many."""
    return searched(model, _even(method, method.flops), images, (), progress, basis).weights


def _means(model: nn.Module, method: WardCut, weights: Weights | None, share: float) -> Schedule:
    """How many tokens of an image merge in every block where all images merge as many."""
    even = _even(method, share)
    if weights is None:
        return fold_of(fold_to_learn(model, even)).schedule
    return schedule_of(fold_of(fold_to_learn(model, idle(even, weights))), even, weights)


def _even(method: WardCut, share: float | None) -> Ward:
    """The method by which every image loses as many, as this one cuts."""
    return method.even(
        flops=share,
        inflection=method.inflection,
        cue=method.cue,
        proportional=method.proportional,
    )


@dataclass(frozen=True)
class Cutting(Base):
    """A method that, in every block, merges so many pairs on average over a batch, and keeps the
    heights at which it cut.

    aim: makes the steps compare tokens as the method does.
    """

    ragged = True

    method: WardCut
    means: tuple[int, ...]
    aim: Callable[[Plan], Plan]
    heights: list[float] = field(default_factory=list)

    @property
    def proportional(self) -> bool:
        """As in the calibrated method."""
        return self.method.proportional

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """A cut in all blocks from the first on."""
        self.heights[:] = [0.0] * layout.depth
        return self.aim(
            tuple(
                CutAtMean(self.method.cue, None, block=block, mean=mean, heights=self.heights)
                if mean
                else None
                for block, mean in enumerate(self.means)
            )
        )


@dataclass(frozen=True)
class CutAtMean(Step):
    """Cuts at the height at which so many pairs merge on average over a batch, and keeps it.

    heights: of every block.
    """

    block: int = field(kw_only=True)
    mean: int = field(kw_only=True)
    heights: list[float] = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """Merge the pairs that are nearer than the height, and keep it."""
        pairs = state.pairs(view.cue, by_size=True)
        nearest = pairs.value[pairs.value.isfinite()].sort(descending=True).values
        number = round(self.mean * state.batch)
        beyond = -float(nearest[number]) if number < len(nearest) else HIGHEST
        self.heights[self.block] = min(max(beyond, 0.0), HIGHEST)
        return state.apply(x, state.merge_pairs(pairs, -self.heights[self.block]))
