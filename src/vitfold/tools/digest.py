"""Fingerprints: a short text that differs where two sets of tensors do."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from vitfold.errors import PlanError


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = _bytes(name, tensors[name])
        dtype = str(tensors[name].dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def _bytes(name: str, tensor: object) -> Tensor:
    """`[bytes]`: the values of a tensor, quantized ones included."""
    try:
        if not isinstance(tensor, Tensor):
            raise TypeError("no tensor")
        if tensor.is_meta:
            raise PlanError(
                f"the values of {name!r} are not there (they are on the meta device, as where a "
                "model is offloaded or empty): save the model when it has its weights"
            )
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    except PlanError:
        raise
    # A subclass of tensors raises whatever it likes where it has no such operation.
    except Exception as error:
        kind = type(tensor).__name__
        raise PlanError(
            f"the values of {name!r}, a {kind}, cannot be read, as in quantized models: "
            "save the model before it is quantized, or without its weights"
        ) from error
