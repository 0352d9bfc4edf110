"""Images for commands: those of a source, or of the dataset that a model was made for."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.cli import options
from vitfold.data import (
    AnySource,
    Source,
    batches,
    labelled,
    limited,
    loader,
    shuffled,
    streams,
    unlabelled,
)
from vitfold.saving.models import dataset_of
from vitfold.tools.validate import Batch


def batches_of(
    model: nn.Module, source: AnySource, limit: int | None, batch_size: int, workers: int
) -> Iterable[Batch]:
    """Batches of at most `limit` labelled images, evenly spaced."""
    dataset = labelled(model, source_for(model, source), limit)
    every: Iterable[Batch] = loader(dataset, batch_size, workers)
    return limited(every, limit) if streams(dataset) else every


def photographs(
    model: nn.Module,
    source: AnySource,
    limit: int | None,
    batch_size: int,
    workers: int,
    *,
    skip: bool = False,
) -> Iterable[Tensor]:
    """Batches `[B, C, H, W]` of at most `limit` images, evenly spaced, which need no labels.

    skip: leave out images that cannot be read, with one warning; otherwise one is an error.
    """
    images = unlabelled(model, source_for(model, source), limit, skip=skip)
    return batches(images, batch_size, workers)


def sample(model: nn.Module, source: AnySource, limit: int, workers: int) -> Tensor:
    """`[N, C, H, W]`: at most so many images at once, without those that cannot be read."""
    return torch.cat(list(photographs(model, source, limit, 64, workers, skip=True)))


def shuffled_of(
    model: nn.Module,
    source: AnySource,
    batch_size: int,
    iterations: int,
    seed: int,
    workers: int,
) -> Iterable[Batch]:
    """So many batches in an order that the seed decides; what cannot be read is left out, as in
    training."""
    images: Any = labelled(model, source_for(model, source), skip=True)
    if not streams(images):
        images = shuffled(images, seed, batch_size * iterations)
    every: Iterable[Batch] = loader(images, batch_size, workers)
    return every


def source_for(model: nn.Module, source: AnySource) -> AnySource:
    """The source, or where it names no images that split of the model's own dataset."""
    if source.is_set or not isinstance(source, Source):
        return source
    name = dataset_of(model)
    if not name:
        raise options.no_data()
    return replace(source, dataset=name)
