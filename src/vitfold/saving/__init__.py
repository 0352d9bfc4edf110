"""Saving a folded model, and loading it: `plan.json` and, where asked for, its weights."""

import functools
import os
from pathlib import Path
from typing import TypeVar, overload

from torch import Tensor, nn

from vitfold.errors import MethodError, PlanError
from vitfold.files import writing
from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold_with
from vitfold.saving import fields, learned, store, weights
from vitfold.saving.schema import Plan, decode
from vitfold.saving.subject import describe, fit, rebuild

ModelT = TypeVar("ModelT", bound=nn.Module)

Directory = str | os.PathLike[str]


def save(model: nn.Module, directory: Directory, *, backbone: bool = False) -> None:
    """Save how `model` is folded, in a directory that may hold an older plan.

    What the method has learned is saved with it.

    backbone: save the model's own weights too. Without them, loading takes the pretrained weights
        that the model is known by, or a model that is given.

    A model that cannot be made by name, such as one with a head of its own, is saved all the same;
    to load it, give it.
    """
    directory = store.place(directory)
    plan = describe(model, backbone=backbone)
    state = learned.state(model) | (clone(model).state_dict() if backbone else {})
    with writing(directory, PlanError):
        directory.mkdir(parents=True, exist_ok=True)
        writes = functools.partial(weights.write, state) if plan.weights else None
        store.write(directory, plan, writes)


@overload
def load(directory: Directory, model: ModelT) -> ModelT: ...
@overload
def load(directory: Directory, model: None = None) -> nn.Module: ...
def load(directory: Directory, model: nn.Module | None = None) -> nn.Module:
    """The model that was saved, made by name and folded, ready to evaluate.

    model: fold this one instead, in place, and return it. It gets the saved weights where there
        are any, and stays as it is where the plan does not fit.
    """
    directory = store.place(directory)
    plan = decode(store.read(directory))
    stored, taught = _stored(directory, plan)
    if model is None:
        model = rebuild(plan, stored)
    else:
        fit(plan, model, find(model), stored)
    _put_on(model, plan)
    weights.copy(stored or {}, model)
    learned.copy(taught, model)
    return model


def has_backbone(directory: Directory) -> bool:
    """Whether a plan comes with the model's own weights."""
    held = decode(store.read(store.place(directory))).weights
    return held is not None and held.backbone


def _stored(directory: Path, plan: Plan) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """What is in the file of weights: the model's own, None where they are not in it, and what the
    method has learned."""
    if plan.weights is None:
        learned.check({}, plan)
        return None, {}
    own, taught = learned.split(weights.read(directory, plan.weights.file))
    learned.check(taught, plan)
    if plan.weights.backbone:
        return own, taught
    weights.check(own, {}, plan.weights.file)
    return None, taught


def _put_on(model: nn.Module, plan: Plan) -> None:
    try:
        fold_with(model, plan.method, plan.schedule)
    except MethodError as error:
        raise PlanError(f"{fields.FILE}: {error}") from error
