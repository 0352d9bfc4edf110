"""The model that a plan is about: described, compared with another, made again."""

import importlib.metadata
from typing import Any

from torch import Tensor, nn

from vitfold.errors import MissingExtra, PlanError, UnsupportedModel
from vitfold.folding.calls import fold_of
from vitfold.folding.families import Family, find
from vitfold.folding.fold import clone
from vitfold.saving import fields, sources, store, weights
from vitfold.saving.schema import DTYPES, PACKAGES, Model, Plan, Weights

REMEDY = "give the model, vitfold.load(directory, model), or save it with backbone=True"


def describe(model: nn.Module, *, backbone: bool = False) -> Plan:
    """The plan of a folded model, as it is saved."""
    record = fold_of(model)
    holds = backbone or record.learned is not None
    held = Weights(store.WEIGHTS, backbone) if holds else None
    made = _describe(clone(model), record.family)
    return Plan(made, record.method, record.schedule, held, _versions(made.source))


def _describe(model: nn.Module, found: Family) -> Model:
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


def _facts(found: Family) -> dict[str, Any]:
    """What a plan depends on."""
    return {"depth": found.depth, "width": found.width, "prefix": found.prefix}


def _versions(source: str) -> dict[str, str]:
    used = PACKAGES if source == "transformers" else PACKAGES[:-1]
    return {package: _version(package) for package in used}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def fit(plan: Plan, model: nn.Module, found: Family, stored: weights.Tensors | None) -> None:
    """Refuse a model that the plan was not made for, or that its weights do not fit."""
    kind = type(model).__name__
    for field, value in _facts(found).items():
        if value != (wanted := getattr(plan.model, field)):
            raise PlanError(f"{fields.FILE}: model.{field}={wanted}: this {kind} has {value}")
    source, name = sources.identify(model)
    _fit_name(plan.model, source, name)
    if plan.weights and stored is not None:
        weights.check(stored, clone(model).state_dict(), plan.weights.file)
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


def rebuild(plan: Plan, stored: weights.Tensors | None) -> nn.Module:
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
    fit(plan, blank, found, stored)
    model = _make(plan.model, pretrained=stored is None)
    _cast(model, plan.model, stored or {})
    if stored is None and weights.fingerprint(clone(model).state_dict()) != plan.model.fingerprint:
        raise PlanError(
            f"{fields.FILE}: model.fingerprint: what was saved were not the pretrained weights of "
            f"{plan.model.name!r}: {REMEDY}"
        )
    return model.eval()


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


def _cast(model: nn.Module, made: Model, stored: weights.Tensors) -> None:
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
