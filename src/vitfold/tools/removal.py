"""How many tokens each block of a folded model saves."""

import itertools

from torch import nn

from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of
from vitfold.folding.inputs import Inputs
from vitfold.methods.base import planned
from vitfold.methods.schedule import whole
from vitfold.methods.step import Plan, Step
from vitfold.tokens.modes import evaluating
from vitfold.tools.measure import batch_of
from vitfold.tools.trace import trace


def removed(model: nn.Module, images: Inputs | None = None) -> tuple[int, ...]:
    """How many tokens leave every block of a folded model, or go around it, for images of its own
    size; where each image keeps its own number, on average over `images`."""
    if fold_of(model).method.ragged:
        return _removed_on_average(model, images)
    return tuple(_spared(step) for step in _plan(model))


def returns(model: nn.Module) -> bool:
    """Whether tokens come back after a block of a folded model."""
    ragged = fold_of(model).method.ragged
    return not ragged and any(step.aside for step in _plan(model) if step)


def _plan(model: nn.Module) -> Plan:
    record = fold_of(model)
    layout = record.family.layout()
    return planned(record.learned or record.method, layout, record.schedule)


def _spared(step: Step | None) -> int:
    """How many tokens a block need not feed forward."""
    return (step.removes or 0) + step.aside if step else 0


def _removed_on_average(model: nn.Module, images: Inputs | None) -> tuple[int, ...]:
    method = fold_of(model).method
    if images is None:
        raise MethodError(f"{method} keeps another number of tokens for every image: give images")
    with evaluating(model):
        traced = trace(model, images)
    counts = [[traced.maps[0].tokens] * batch_of(images), *traced.counts]
    means = [sum(numbers) / len(numbers) for numbers in counts]
    return tuple(whole(before - after for before, after in itertools.pairwise(means)))
