"""Save models in directories, with a plan of how they are folded, and load them."""

import os
import warnings
from typing import TypeVar, overload

from torch import Tensor, nn

from vitfold.errors import MethodError, PlanError
from vitfold.files import held, writing
from vitfold.folding.calls import fold_of, folds
from vitfold.folding.fold import clone, fold_with, unfold
from vitfold.saving import fields, learned, sources, store, weights
from vitfold.saving.schema import DTYPES, Plan, decode
from vitfold.saving.sources import file
from vitfold.saving.subject import check_values, describe, fit, rebuild

ModelT = TypeVar("ModelT", bound=nn.Module)

Directory = str | os.PathLike[str]


def save(model: nn.Module, directory: Directory, *, backbone: bool = False) -> None:
    """Save how `model` is folded, in a directory that may hold an older plan.

    What the method has learned is saved with it.

    backbone: save the model's own weights too. Without them, loading takes the pretrained weights
        that the model is known by, or a model that is given.

    A model that cannot be made by name, such as one with a head of its own, is saved all the same;
    to load it, give it. So is one that a file made: a plan says by which, and never runs it.
    """
    if not folds(model):
        fold_of(model)  # says so, before weights are read
    write(model, directory, describe(model, backbone=backbone))


def save_model(model: nn.Module, directory: Directory) -> None:
    """Save a model with its weights, folded or not, in a directory from which `create_model` makes
    it again."""
    _refuse_nameless(model)
    write(model, directory, describe(model, backbone=True))


def check_saves(model: nn.Module) -> None:
    """Refuse a model that `save_model` cannot save, and say of one that cannot be made again by
    name what it takes to load it: before it is trained, not after."""
    _refuse_nameless(model)
    if describe(model).model.source == sources.OTHER:
        warnings.warn(
            f"this {type(model).__name__} cannot be made by its name and plain arguments alone: to "
            "load what is saved, make it yourself, vitfold.load(directory, model)",
            stacklevel=3,
        )


def _refuse_nameless(model: nn.Module) -> None:
    if not folds(model) and sources.identify(model)[0] == sources.OTHER:
        raise PlanError(
            f"this {type(model).__name__} cannot be saved, as it cannot be made by name and plain "
            "arguments: make it by vitfold.create_model, timm.create_model or from_pretrained"
        )


def write(model: nn.Module, directory: Directory, plan: Plan) -> None:
    """Write a model into a directory, as a plan describes it."""
    directory = store.place(directory)
    state = learned.state(model)
    if plan.weights and plan.weights.backbone:
        state |= weights.stored_as(plan.weights.dtype, clone(model).state_dict())
    with writing(directory, PlanError), held(directory) as alone:
        writes = (lambda path: store.write_tensors(state, path)) if plan.weights else None
        store.write(directory, plan, writes, alone)


@overload
def load(directory: Directory, model: ModelT) -> ModelT: ...
@overload
def load(directory: Directory, model: None = None) -> nn.Module: ...
def load(directory: Directory, model: nn.Module | None = None) -> nn.Module:
    """The model that was saved, made by name and folded as it was, ready to evaluate. No file of
    Python is ever run for it.

    model: fold this one instead, in place, and return it. It gets the saved weights where there
        are any, and stays as it is where the plan does not fit.
    """
    plan, own, lessons = open_plan(directory)
    values = own
    if model is not None:
        fit(plan, model, own)
    else:
        model = rebuild(plan, own)
        values = model.state_dict() if own is None else own
    if values is not None:
        check_values(plan, values)
    try:
        if plan.method is not None:
            fold_with(model, plan.method, plan.schedule, plan.out)
        else:
            unfold(model)
    except MethodError as error:
        raise PlanError(f"{fields.FILE}: {error}") from error
    weights.copy(own or {}, model)
    learned.copy(lessons, model)
    return model


def read_plan(directory: Directory) -> Plan:
    """The plan in a directory."""
    return decode(store.read(store.source(directory)))


def has_backbone(directory: Directory) -> bool:
    """Whether a plan comes with the model's own weights."""
    stored = read_plan(directory).weights
    return stored is not None and stored.backbone


def needs_model(directory: Directory) -> bool:
    """Whether a plan is not enough to make its model, which then has to be given."""
    source = read_plan(directory).model.source
    return source == sources.OTHER or not sources.source(source).builds


def file_of(directory: Directory) -> str | None:
    """The file and function that made the model of a plan, and what that was given, as the command
    line takes them; None of a model that no file made."""
    model = read_plan(directory).model
    return file.command_line(model.name, model.arguments) if model.source == file.NAME else None


def open_plan(
    directory: Directory,
) -> tuple[Plan, dict[str, Tensor] | None, dict[str, Tensor]]:
    """The plan, the model's own weights, None where they are not there, and what was learned."""
    plan, tensors = store.open_together(store.source(directory))
    own, lessons = learned.split(tensors)
    learned.check(lessons, plan)
    if plan.weights is None or not plan.weights.backbone:
        weights.check(own, {}, plan.weights.file if plan.weights else "weights")
        return plan, None, lessons
    if plan.weights.dtype is not None:
        own = weights.cast(own, DTYPES[plan.model.dtype])
    return plan, own, lessons
