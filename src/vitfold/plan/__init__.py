"""Saving a folded model, and loading it: `plan.json` and, where asked for, its weights."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
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
    record = folded(model)
    held = Weights(store.WEIGHTS, backbone) if backbone else None
    made = _describe(model, record.found)
    plan = Plan(made, record.method, record.schedule, held, _versions(made.source))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        store.write(directory, plan, (lambda path: weights.write(model, path)) if held else None)
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


def _describe(model: nn.Module, found: Found) -> Model:
    state = model.state_dict()
    made = [tensor for name, tensor in model.named_buffers() if name not in state]
    dtype = _dtype(list(state.values()))
    return Model(
        *sources.describe(model, found),
        *_facts(found).values(),
        dtype or "float32",
        _dtype(made) or dtype or "float32",
        weights.fingerprint(state),
    )


def _dtype(tensors: list[Tensor]) -> str | None:
    """The dtype of the first that has a floating one."""
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return next((str(dtype).removeprefix("torch.") for dtype in floating), None)


def _facts(found: Found) -> dict[str, int]:
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
    """The backbone's weights in the directory; None where they are not there."""
    if plan.weights is None:
        return None
    stored = weights.read(directory, plan.weights.file)
    if not plan.weights.backbone:
        weights.check(stored, {}, plan.weights.file)
        return None
    if weights.fingerprint(stored) != plan.model.fingerprint:
        raise PlanError(f"{plan.weights.file}: not the weights of model.fingerprint in plan.json")
    return stored
