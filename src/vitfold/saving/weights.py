"""Tensors by name: whether they fit a model exactly, and copied into it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitfold.errors import PlanError
from vitfold.saving.fields import clip

Tensors = Mapping[str, Tensor]


def cast(tensors: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in that dtype, as far as they are floating."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def stored_as(dtype: str | None, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors as they are to be stored, in a smaller dtype that loses nothing of them."""
    if dtype is None:
        return dict(tensors)
    small = cast(tensors, getattr(torch, dtype))
    for name, tensor in tensors.items():
        if not torch.equal(small[name].to(tensor.dtype), tensor):
            raise PlanError(f"{clip(name)} has values that {dtype} cannot hold: round them first")
    return small


def check(tensors: Tensors, reference: Tensors, name: str) -> None:
    """Refuse tensors whose names, shapes or dtypes differ from those of the reference."""
    for key in tensors:
        if key not in reference:
            raise PlanError(f"{name}: {clip(key)} is unknown to the model")
    for key, tensor in reference.items():
        if key not in tensors:
            raise PlanError(f"{name}: {clip(key)} is missing: the model has it")
        for trait in ("shape", "dtype"):
            actual, expected = _trait(tensors[key], trait), _trait(tensor, trait)
            if actual != expected:
                raise PlanError(f"{name}: {clip(key)} has {trait} {actual}: expected {expected}")


def _trait(tensor: Tensor, trait: str) -> str:
    value = getattr(tensor, trait)
    return str(list(value)) if trait == "shape" else str(value).removeprefix("torch.")


def copy(tensors: Tensors, model: nn.Module) -> None:
    """Give a model the values of tensors that `check` accepts."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
