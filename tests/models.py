"""Registered models at a size that runs in no time, and a slow twin that shows what folding a
model has to give."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitfold.families import Found, find
from vitfold.fold import watch
from vitfold.run import Run

CELLS = 5
"""The side of the patch grid of `registered` models."""


def registered(name: str, depth: int = 2, **options: Any) -> Any:
    """A model of timm's registry with few blocks, few patches and weights that matter."""
    side = CELLS * _stride(name)
    if not name.startswith("naflexvit"):
        options.setdefault("img_size", side)
    with torch.device("meta"):
        model = timm.create_model(name, depth=depth, **_per_block(name, depth), **options)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "_init_buffers"):
            module._init_buffers()
    return scatter(model)


def _stride(name: str) -> int:
    """How many pixels a patch of a registered model is wide."""
    found = re.search(r"patch(\d+)|_s(\d+)_(?!p)|_s16_p(8)", name)
    if found and found[3]:
        return 16 * int(found[3])
    if found:
        return int(found[1] or found[2])
    return 32 if "resnet" in name and "s16" not in name else 16


def _per_block(name: str, depth: int) -> dict[str, Any]:
    """Options that a registered model gives for each of its blocks, for fewer of them."""
    return {}


def scatter(model: nn.Module, seed: int = 0) -> Any:
    """Random weights of a size that lets every part of the model matter; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        mean, deviation = _moments(weight)
        weight.data.normal_(mean, deviation, generator=generator)
    return model.eval()


def _moments(weight: Tensor) -> tuple[float, float]:
    if weight.dim() < 2:
        return 0.5, 0.2  # norms, scales and biases
    return 0.0, 1.5 * weight[0].numel() ** -0.5 if weight.shape[0] > 1 else 0.5


def images(model: Any, batch: int = 2, seed: int = 1) -> Tensor:
    """Random images of the size that the model is made for."""
    generator = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    return torch.randn(batch, *find(model).size, generator=generator).to(weight.dtype)
