"""Saving a folded model, and loading it: `plan.json` and, where asked for, its weights."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from vitfold.errors import MethodError, MissingExtra, PlanError, UnsupportedModel
from vitfold.families import Found, find
from vitfold.fold import fold_with, folded
from vitfold.plan import fields, sources, store, weights
from vitfold.plan.schema import DTYPES, PACKAGES, Model, Plan, Weights, decode

ModelT = TypeVar("ModelT", bound=nn.Module)

Directory = str | os.PathLike[str]

Tensors = Mapping[str, Tensor]


def save(model: nn.Module, directory: Directory, *, backbone: bool = False) -> None:
    """Save how `model` is folded, in a directory that may hold an older plan.

    backbone: save the model's own weights too. Without them, loading takes the pretrained weights
        that the model is known by, or a model that is given.

    A model that cannot be made by name, such as one with a head of its own, is saved all the same;
    to load it, give it.
    """
    directory = Path(directory)
    plan = describe(model, backbone=backbone)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        store.write(
            directory, plan, (lambda path: weights.write(model, path)) if backbone else None
        )
    except OSError as error:
        raise PlanError(f"{str(directory)!r} cannot be written: {fields.clip(error)}") from error


@overload
def load(directory: Directory, model: ModelT) -> ModelT: ...
@overload
def load(directory: Directory, model: None = None) -> nn.Module: ...
def load(directory: Directory, model: nn.Module | None = None) -> nn.Module:
    """The model that was saved, made by name and folded, ready to evaluate.

    model: fold this one instead, in place, and return it. It gets the saved weights where there
        are any, and stays as it is where the plan does not fit.
    """
    directory = Path(directory)
    plan = decode(store.read(directory))
    stored = _stored(directory, plan)
    if model is None:
        model = _rebuild(plan, stored)
    else:
        _fit(plan, model, find(model), stored)
    _put_on(model, plan)
    weights.copy(stored or {}, model)
    return model


def describe(model: nn.Module, *, backbone: bool = False) -> Plan:
    """The plan of a folded model, as it is saved."""
    record = folded(model)
    held = Weights(store.WEIGHTS, backbone) if backbone else None
    made = _describe(model, record.found)
    return Plan(made, record.method, record.schedule, held, _versions(made.source))


def _describe(model: nn.Module, found: Found) -> Model:
    state = model.state_dict()
    floating = (tensor for tensor in state.values() if tensor.is_floating_point())
    return Model(
        **sources.describe(model)._asdict(),
        **_facts(found),
        dtype=_dtype(next(floating)),
        buffers=[_dtype(table) for table in _tables(model)],
        fingerprint=weights.fingerprint(state),
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tables(model: nn.Module) -> list[Tensor]:
    """The floating buffers that a model computes when it is made, and does not save."""
    state, buffers = model.state_dict(), model.named_buffers()
    return [table for name, table in buffers if name not in state and table.is_floating_point()]


def _facts(found: Found) -> dict[str, Any]:
    """What a plan depends on."""
    return {"depth": found.depth, "width": _width(found.trunk), "prefix": found.prefix}


def _width(trunk: Any) -> int:
    width = getattr(trunk, "embed_dim", None)
    return int(trunk.config.hidden_size if width is None else width)


def _versions(source: str) -> dict[str, str]:
    used = PACKAGES if source == "transformers" else PACKAGES[:-1]
    return {package: _version(package) for package in used}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _stored(directory: Path, plan: Plan) -> dict[str, Tensor] | None:
    """What is in the file of weights; None where the model's own are not in it."""
    if plan.weights is None:
        return None
    stored = weights.read(directory, plan.weights.file)
    if plan.weights.backbone:
        return stored
    weights.check(stored, {}, plan.weights.file)
    return None


def _fit(plan: Plan, model: nn.Module, found: Found, stored: Tensors | None) -> None:
    """Refuse a model that the plan was not made for, or that its weights do not fit."""
    kind = type(model).__name__
    for field, value in _facts(found).items():
        if value != (wanted := getattr(plan.model, field)):
            raise PlanError(f"{fields.FILE}: model.{field}={wanted}: this {kind} has {value}")
    source, name = sources.identify(model)
    _fit_name(plan.model, source, name)
    if plan.weights and stored is not None:
        weights.check(stored, model.state_dict(), plan.weights.file)
        if weights.fingerprint(stored) != plan.model.fingerprint:
            raise PlanError(f"{plan.weights.file}: its values are not those of model.fingerprint")


def _fit_name(wanted: Model, source: str, name: str) -> None:
    if sources.OTHER in (wanted.source, source):
        return
    if wanted.source != source:
        raise PlanError(f"{fields.FILE}: model.source={wanted.source!r}: this model is of {source}")
    # What follows the point names weights, not a model.
    if wanted.name.partition(".")[0] != name.partition(".")[0]:
        raise PlanError(f"{fields.FILE}: model.name={wanted.name!r}: this model is {name}")


def _rebuild(plan: Plan, stored: Tensors | None) -> nn.Module:
    """The model by name, in evaluation mode. Memory is taken after all has been checked."""
    if plan.model.source == sources.OTHER:
        raise PlanError(
            f"{fields.FILE}: model.source='other': {plan.model.name} cannot be made by name: give "
            "the model, vitfold.load(directory, model)"
        )
    blank = _make(plan.model, pretrained=False, blank=True)
    _cast(blank, plan.model, stored or {})
    try:
        found = find(blank)
    except UnsupportedModel as error:
        raise PlanError(f"{fields.FILE}: model.name={plan.model.name!r}: {error}") from error
    _fit(plan, blank, found, stored)
    model = _make(plan.model, pretrained=stored is None)
    _cast(model, plan.model, stored or {})
    if stored is None and weights.fingerprint(model.state_dict()) != plan.model.fingerprint:
        raise PlanError(
            f"{fields.FILE}: model.fingerprint: what was saved were not the pretrained weights of "
            f"{plan.model.name!r}: {REMEDY}"
        )
    return model.eval()


REMEDY = "give the model, vitfold.load(directory, model), or save it with backbone=True"


def _make(made: Model, *, pretrained: bool, blank: bool = False) -> nn.Module:
    """The model of that name; what goes wrong inside its library is an error of the plan."""
    try:
        if blank:
            return sources.sketch(made.source, made.name, made.arguments)
        return sources.SOURCES[made.source].build(made.name, made.arguments, pretrained)
    except (PlanError, MissingExtra):
        raise
    # Constructors and downloads of other libraries: they raise whatever they like.
    except Exception as error:
        reason = fields.clip(error or type(error).__name__)
        if pretrained:
            what = f"model.name={made.name!r}: its pretrained weights cannot be had: {REMEDY}"
        else:
            what = f"model.arguments do not make a {made.name}"
        raise PlanError(f"{fields.FILE}: {what} ({reason})") from error


def _cast(model: nn.Module, made: Model, stored: Tensors) -> None:
    """Give every floating tensor the dtype that it was saved with."""
    tables = _tables(model)
    if len(tables) != len(made.buffers):
        count = len(made.buffers)
        raise PlanError(f"{fields.FILE}: model.buffers has {count} dtypes: expected {len(tables)}")
    for table, dtype in zip(tables, made.buffers, strict=True):
        table.data = table.data.to(DTYPES[dtype])
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            saved = stored.get(name, tensor)
            kept = name in stored and saved.is_floating_point()
            tensor.data = tensor.data.to(saved.dtype if kept else DTYPES[made.dtype])


def _put_on(model: nn.Module, plan: Plan) -> None:
    try:
        fold_with(model, plan.method, plan.schedule)
    except MethodError as error:
        raise PlanError(f"{fields.FILE}: {error}") from error
