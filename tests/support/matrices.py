"""PruneMerge with scores at random, and labelled batches."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from support.small import images
from vitfold import PruneMerge
from vitfold.folding.calls import fold_of


def scores(blocks: int, patches: int, seed: int = 0) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[float]] = torch.rand(blocks, patches, generator=generator).tolist()
    return rows


def method(grid: tuple[int, int] = (7, 7), **options: Any) -> PruneMerge:
    blocks = options.pop("blocks", (1, 2, 3))
    settings = {"keep": 0.3, "prune": 0.2} | options
    return PruneMerge(
        blocks=blocks, grid=grid, scores=tuple(map(tuple, scores(len(blocks), math.prod(grid)))),
        **settings,
    )  # fmt: skip


def stir(model: nn.Module) -> None:
    """Matrices as training may leave them: no zeros."""
    generator = torch.Generator().manual_seed(5)
    learned = fold_of(model).learned
    assert learned is not None
    for values in learned.parameters():
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        values.data.add_(0.05 * noise.to(values.dtype))


def batches(model: Any, number: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 7, (number, size), generator=generator)
    dtype = next(model.parameters()).dtype
    return [(images(model, size, seed, dtype), labels[seed]) for seed in range(number)]
