"""Learner: a model with its loss, optimizer and schedule on a device, and one step of all that."""

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import TrainError
from vitfold.folding.fold import unfold
from vitfold.train.examples import STEP, mixing, seed_all
from vitfold.train.learned import learned_modules
from vitfold.train.objective import Objective
from vitfold.train.optimizer import PlainStep, SharpnessAwareStep, optimizer, scheduler
from vitfold.train.recipe import Recipe
from vitfold.train.settings import TrainingData


class Learner:
    """The model, its objective, optimizer and schedule: all that changes from step to step.

    steps: of an epoch.
    compiled: whether the model runs through `torch.compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: TrainingData,
        accelerator: Any,
        steps: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self.mix = mixing(recipe, data.classes)
        smoothing = 0.0 if self.mix else recipe.smoothing  # mixed labels come smoothed
        teacher = self._teacher(data.teacher)
        self.objective = Objective(model, smoothing, recipe.distill, teacher)
        model.to(accelerator.device)
        self.learned = learned_modules(model)
        if self.learned and compiled:
            raise TrainError("what a method learns is not seen in a compiled model: do not compile")
        frozen = recipe.freeze == "model"
        self.optimizer = optimizer(model, recipe.optimizer, recipe.rates, frozen=frozen)
        self._loss = accelerator.prepare(
            torch.compile(self.objective) if compiled else self.objective
        )
        stepping = accelerator.prepare(self.optimizer)
        self._update = (
            SharpnessAwareStep(stepping, recipe.sam) if recipe.sam else PlainStep(stepping)
        )
        self.schedule = scheduler(self.optimizer, recipe.schedule, recipe.epochs, steps)

    def _teacher(self, teacher: nn.Module | None) -> nn.Module | None:
        if self.recipe.distill and teacher is None:
            teacher = unfold(copy.deepcopy(self.model))
        if teacher is not None:
            teacher.to(self.accelerator.device).requires_grad_(False)
        return teacher

    @property
    def rate(self) -> float:
        """The current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def figures(self) -> dict[str, Any]:
        """What the method logs of the last batch."""
        return self.objective.figures

    def step(self, step: int, batches: list[Any]) -> Tensor:
        """One update from all batches of a step; returns the mean loss."""
        loss: Tensor = self._update(lambda: self._backward(step, batches), self._clip)
        for learned in self.learned:
            learned.constrain()
        self.schedule.step_update(step + 1)
        return loss

    def _backward(self, step: int, batches: list[Any]) -> Tensor:
        """The gradient of the mean loss over all batches of a step."""
        total = torch.zeros((), device=self.accelerator.device)
        for number, (images, labels) in enumerate(batches):
            seed_all(self.recipe.seed, STEP, step, number, self.accelerator.process_index)
            images, labels = (part.to(self.accelerator.device) for part in (images, labels))
            if self.mix:
                images, labels = self.mix(images.clone(), labels)
            last = number == len(batches) - 1
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self._loss)
            with alone:
                loss = self._loss(images, labels) / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip(self) -> None:
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        floating = [p.detach() for p in self.model.parameters() if p.is_floating_point()]
        return all(bool(weight.isfinite().all()) for weight in floating)

    def state(self) -> dict[str, Any]:
        """The state that a training resumes from."""
        schedule, scaler = self.schedule.state_dict(), self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {name: value for name, value in schedule.items() if not callable(value)},
            "scaler": scaler.state_dict() if scaler else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Set the state that `state` of an earlier learner gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
