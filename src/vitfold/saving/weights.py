"""Weights beside a plan: safetensors only, which have to fit the model exactly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitfold.errors import PlanError
from vitfold.saving.fields import FILE, clip

Tensors = Mapping[str, Tensor]

HEADER = 2**23
"""The most bytes that the header of a file may have."""


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


def write(state: Tensors, path: Path) -> None:
    """Write tensors by name, as they are."""
    tensors: dict[str, Tensor] = {}
    owned: set[int] = set()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        # The format has no shared memory: what is tied is written twice.
        tensors[name] = plain.clone() if place in owned else plain
        owned.add(place)
    save_file(tensors, path, metadata={"format": "pt"})


def read(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file in the directory."""
    path = directory / name
    _check_place(directory, path)
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # The library says in many ways that a file is broken.
    except Exception as error:
        raise PlanError(f"{name}: cannot be read as safetensors: {clip(error)}") from error


def _check_place(directory: Path, path: Path) -> None:
    try:
        real = path.resolve(strict=True)
        inside = real.is_relative_to(directory.resolve(strict=True))
    except (OSError, RuntimeError):
        raise PlanError(f"{FILE}: weights.file={path.name!r}: no such file") from None
    if not inside:
        raise PlanError(f"{FILE}: weights.file={path.name!r}: a link that leaves the directory")
    if not real.is_file():
        raise PlanError(f"{FILE}: weights.file={path.name!r}: not a file")


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise PlanError(f"{path.name}: cannot be read: {error.strerror}") from error
    if start[8:] != b"{":
        raise PlanError(
            f"{path.name}: not a safetensors file (it starts with {start[:4]!r}): no other format, "
            "such as a pickle, is ever opened"
        )
    size = int.from_bytes(start[:8], "little")
    if size > HEADER:
        raise PlanError(f"{path.name}: a header of {size} bytes: expected at most {HEADER}")


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
