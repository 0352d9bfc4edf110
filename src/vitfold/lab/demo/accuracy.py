"""Methods on the embedded model, on held-out digits."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vitfold.data.digits import load_split
from vitfold.lab.candidate import candidates
from vitfold.lab.sweep import MORE, Row, sweep
from vitfold.saving.models import create_model
from vitfold.tools.measure import Progress

METHODS = ("tome", "dfe", "lgtm", "ward", "drop")
SHARES = (0.75, 0.5)
BATCH = 32


def steps() -> int:
    """How often `rows` calls its progress."""
    models = 1 + len(METHODS) * len(SHARES)
    return models * (-(-len(load_split("test")[1]) // BATCH) + MORE)


def rows(progress: Progress = lambda: None) -> Iterator[tuple[Row, nn.Module]]:
    """The dense model first, then each method at every share, each with its model. They are not
    timed: a model as small as that is all overhead."""
    dense = create_model("digits", pretrained=True).eval()
    batches = list(zip(*(part.split(BATCH) for part in load_split("test")), strict=True))
    entries = candidates(dense, METHODS, SHARES)
    return sweep(dense, entries, lambda: batches, sizes=(), progress=progress)


def picture_batch() -> Tensor:
    """A few held-out digits to draw."""
    images, labels = load_split("test")
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    return torch.stack([images[index] for index in first[2:6]])
