"""Evaluations of a training: a figure after every epoch, and the best model so far."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitfold.saving.models import save_model
from vitfold.train.evaluators import Evaluator
from vitfold.train.learned import is_ragged
from vitfold.train.log import lenient
from vitfold.train.settings import TrainingData


class Evaluation:
    """The evaluations of one training, with the best figure so far.

    place: where the best model goes.
    batch_size: images at once.
    workers: processes that read images.
    best: the highest figure so far.
    """

    def __init__(
        self, data: TrainingData, accelerator: Any, place: Path, batch_size: int, workers: int
    ) -> None:
        self.images, self.evaluator = data.held_out, data.evaluator
        self.accelerator, self.place = accelerator, place
        self.batch_size, self.workers = batch_size, workers
        self.best: float | None = None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The figure of the model, by name, if there are held-out images; the best one is kept."""
        if self.images is None:
            return {}
        value = self._figure(model, self.evaluator)
        # Of what reduces more from step to step, an earlier state is no better one.
        if not is_ragged(model) and (self.best is None or value > self.best):
            self.best = value
            if self.accelerator.is_main_process:
                with lenient(self.place.name):
                    save_model(model, self.place)
        return {self.evaluator.figure: value}

    def _figure(self, model: nn.Module, evaluator: Evaluator) -> float:
        """The figure of the model; images are shared out among processes."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        batches = evaluator.batches(self.images, rank, processes, self.batch_size, self.workers)
        model.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            counts = evaluator.count(model, batches, self.accelerator.device)
        model.train()
        return evaluator.value(self.accelerator.reduce(counts))
