"""Folds of one model on the same labelled images: what each says of every image, kept in a file."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vitfold
from vitfold.folding.calls import folds
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone
from vitfold.lab.candidate import gigaflops
from vitfold.tools.fidelity import Comparison
from vitfold.tools.intervals import CONFIDENT
from vitfold.tools.looks import Look
from vitfold.tools.measure import random_inputs
from vitfold.tools.validate import Batch, Predictor

Numbers = dict[str, Tensor]
"""Of one fold, by name: `[images]` `best` (its class), `right`, `agreement`, `kl` and `cosine`, and
`[1]` `gflops`."""

SAMPLE = 512
"""On so many images is counted what a fold costs whose images cost what they like."""


class Kept:
    """What was measured of every image, by the name of the fold, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flat: Numbers = load_file(path) if path.exists() else {}

    def __contains__(self, name: str) -> bool:
        return f"{name}/right" in self.flat

    def __getitem__(self, name: str) -> Numbers:
        start = f"{name}/"
        return {k.removeprefix(start): v for k, v in self.flat.items() if k.startswith(start)}

    def add(self, name: str, numbers: Numbers) -> None:
        """One more fold, written before the next one is begun."""
        self.flat |= {f"{name}/{figure}": x.contiguous() for figure, x in numbers.items()}
        self._write()

    def forget(self, *names: str) -> list[str]:
        """What those folds said, as they are made anew; those of which anything was known."""
        gone = [name for name in names if name in self]
        starts = tuple(f"{name}/" for name in gone)
        self.flat = {k: v for k, v in self.flat.items() if not k.startswith(starts)}
        if gone:
            self._write()
        return gone

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file(self.flat, part)
        part.replace(self.path)


@dataclass(frozen=True)
class Judge:
    """Measures folds on the same images, against the dense model."""

    dense: nn.Module
    batches: list[Batch]

    @functools.cached_property
    def looks(self) -> list[Look]:
        """What the dense model says."""
        predictor = self._predictor(self.dense)
        return [predictor.update(*batch).kept() for batch in self.batches]

    def measure(self, model: nn.Module, progress: Callable[[], None] = lambda: None) -> Numbers:
        """Of every image: what the fold says, whether that is right, and how near it stays; and
        what it costs.

        progress: called after every batch.
        """
        predictor, comparison = self._predictor(model.eval()), Comparison()
        for batch, dense in zip(self.batches, self.looks, strict=True):
            comparison.add(predictor.update(*batch), dense)
            progress()
        told = predictor.predictions()
        best = told.best[:, 0]
        figures = {name: torch.cat(each) for name, each in comparison.figures.items()}
        spent = torch.tensor([self._cost(model)])
        numbers = {"best": best, "right": best == told.labels, **figures, "gflops": spent}
        return {name: x.double() for name, x in numbers.items()}

    @functools.cached_property
    def labels(self) -> Tensor:
        """What is right."""
        return torch.cat([labels for _, labels in self.batches])

    def _cost(self, model: nn.Module) -> float:
        """GFLOPs of an image."""
        if not any(record.method.ragged for record in folds(model)):
            return gigaflops(model, random_inputs(model, 1))
        images = torch.cat([images for images, _ in self.batches])
        return gigaflops(model, images[:: max(1, len(images) // SAMPLE)])

    def _predictor(self, model: nn.Module) -> Predictor:
        return Predictor(model, next(self.dense.parameters()).device, None)


def paired(ours: Tensor, other: Tensor) -> tuple[float, float]:
    """By how much a figure of the same images is higher on average, give or take."""
    difference = ours - other
    half = CONFIDENT * float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()), half


def geometric(model: nn.Module, method: str, share: float) -> nn.Module:
    """The model with the same share of its patches leaving every block, so large that it costs that
    share of the FLOPs."""
    layout, dense = find(model).layout(), cost(find(model))

    def at(rate: float) -> nn.Module:
        left = [round(layout.patches * (1 - rate) ** n) for n in range(layout.depth + 1)]
        numbers = [before - after for before, after in itertools.pairwise(left)]
        return vitfold.fold(clone(model), method, r=numbers)

    low, high = 0.0, 0.5
    for _ in range(12):
        middle = (low + high) / 2
        cheap = cost(find(at(middle))) / dense < share
        low, high = (low, middle) if cheap else (middle, high)
    return at(low)
