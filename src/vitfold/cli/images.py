"""Labelled images for commands: those of a source, or the embedded model's own digits."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import nn

from vitfold.cli import options
from vitfold.data import AnySource, labelled, loader, shuffled, streams
from vitfold.fold import clone
from vitfold.plan.sources import digits
from vitfold.validate import Batch, limited


def has_own(model: nn.Module) -> bool:
    """Whether there are images for a model without asking: for the embedded one, however folded."""
    return digits.identify(clone(model)) is not None


def batches_of(
    model: nn.Module,
    source: AnySource,
    limit: int | None,
    batch_size: int,
    workers: int,
    own: Literal["train", "test"] = "test",
) -> Iterable[Batch]:
    """Batches of at most `limit` images, evenly spaced.

    own: the split of the embedded model's own images.
    """
    if source.given:
        dataset = labelled(model, source, limit)
        batches: Iterable[Batch] = loader(dataset, batch_size, workers)
        return limited(batches, limit) if streams(dataset) else batches
    _refuse_none(model)
    from vitfold.digits import load_split

    parts = (torch.split(part[:limit], batch_size) for part in load_split(own))
    return list(zip(*parts, strict=True))


def shuffled_of(
    model: nn.Module,
    source: AnySource,
    batch_size: int,
    iterations: int,
    seed: int,
    workers: int,
) -> Iterable[Batch]:
    """So many batches in an order that the seed decides."""
    if source.given:
        images = labelled(model, source)
        if not streams(images):
            images = shuffled(images, seed, batch_size * iterations)
        batches: Iterable[Batch] = loader(images, batch_size, workers)
        return batches
    _refuse_none(model)
    return list(itertools.islice(_shuffled_digits(batch_size, seed), iterations))


def _shuffled_digits(batch_size: int, seed: int) -> Iterator[Batch]:
    from vitfold.digits import load_split

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images, labels = load_split("train")
        order = torch.randperm(len(labels))
    for some in order.split(batch_size):
        yield images[some], labels[some]


def _refuse_none(model: nn.Module) -> None:
    if not has_own(model):
        raise options.no_data()
