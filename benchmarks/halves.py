"""The labelled images of a benchmark: some to choose by, the others to judge by."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from vitfold.cli.images import source_for
from vitfold.data import Source, labelled, loader
from vitfold.data.subsets import Subset, evenly
from vitfold.tools.validate import Batch


def halves(
    model: nn.Module, source: Source, every: int, limit: int | None, batch_size: int
) -> tuple[Iterable[Batch], Iterable[Batch]]:
    """The images to choose by, every so many-th in the order of their paths, and at most `limit`
    of the others, which judge: nothing is chosen by what judges it."""
    whole = labelled(model, source_for(model, source))
    chosen = range(0, len(whole), every)
    others = [place for place in range(len(whole)) if place % every]
    judges = evenly(Subset(whole, others), limit)
    return loader(Subset(whole, chosen), batch_size, 0), loader(judges, batch_size, 0)


def called(model: str) -> str:
    """What a model is called in names of files: by its directory where a function makes it."""
    place = Path(model)
    return place.parent.name if ".py:" in place.name else place.name
