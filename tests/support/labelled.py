"""Labelled images for small models, and sweeps over them."""

from typing import Any

import torch
from torch import Tensor, nn

from support.models import images
from vitfold.lab.sweep import sweep


def labelled(model: nn.Module, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(images(model, 3), torch.randint(0, 1000, (3,))) for _ in range(count)]


def swept(model: nn.Module, entries: list[Any], batches: Any = None, **options: Any) -> list[Any]:
    some = labelled(model) if batches is None else batches
    return [row for row, _ in sweep(model, entries, lambda: some, sizes=(2,), repeats=1, **options)]
