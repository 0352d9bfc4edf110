"""Labelled images for commands: those of a source, or the embedded model's own digits."""

from collections.abc import Iterable
from typing import Literal

from torch import nn

from vitfold.cli import options
from vitfold.data import (
    AnySource,
    DigitsSource,
    Source,
    labelled,
    limited,
    loader,
    shuffled,
    streams,
)
from vitfold.saving.models import dataset_of
from vitfold.tools.validate import Batch


def has_own(model: nn.Module) -> bool:
    """Whether there are images for a model without asking: for the embedded one, however folded."""
    return dataset_of(model) is not None


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
    dataset = labelled(model, _there(model, source, own), limit)
    batches: Iterable[Batch] = loader(dataset, batch_size, workers)
    return limited(batches, limit) if streams(dataset) else batches


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
    images = labelled(model, _there(model, source, "train"), skip=True)
    if not streams(images):
        images = shuffled(images, seed, batch_size * iterations)
    batches: Iterable[Batch] = loader(images, batch_size, workers)
    return batches


def _there(model: nn.Module, source: AnySource, own: Literal["train", "test"]) -> AnySource:
    """The source, or where nobody gives one the model's own."""
    if source.given:
        return source
    if not has_own(model):
        raise options.no_data()
    if isinstance(source, Source) and (source.class_map or source.split not in USUAL):
        raise options.split_already("--split", "--class-map")
    return DigitsSource(own)


USUAL = ("train", "validation")
"""Splits that commands take where nobody says which."""
