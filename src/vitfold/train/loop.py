"""The loop: steps and epochs, on one device or many."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitfold.errors import TrainError
from vitfold.saving.models import check_saves, save_model
from vitfold.train import checkpoint
from vitfold.train.evaluation import Evaluation
from vitfold.train.examples import Examples, Order, finish, length, load, own_randomness
from vitfold.train.fit import fit_learned
from vitfold.train.learned import method_recipe, trained_share
from vitfold.train.learner import Learner
from vitfold.train.log import Log
from vitfold.train.optimizer import freezing
from vitfold.train.outcome import Outcome, check_share
from vitfold.train.output import Output
from vitfold.train.recipe import LOG_EVERY, Recipe
from vitfold.train.settings import Settings, TrainingData, create_accelerator, no_bar
from vitfold.train.signals import stop_signals


def train(model: nn.Module, recipe: Recipe, data: TrainingData, settings: Settings) -> Outcome:
    """Train `model` in place, folded or not: `train(model, Recipe.for_model(model, epochs=2),
    TrainingData(images), Settings(Path("out")))`.

    A training that was stopped or killed goes on by `Settings(..., resume=True)`, to the same
    weights, bit for bit, that it would have come to. On SIGINT and SIGTERM it ends after its step.
    """
    check_saves(model)
    output = Output(settings.output)
    accelerator = settings.accelerator or create_accelerator()
    with own_randomness(), freezing(model, recipe.freeze), stop_signals() as stop:
        training = Training(model, recipe, data, settings, accelerator)
        try:
            training.begin(output)
            outcome = training.run(stop)
        except BaseException:
            if accelerator.is_main_process:
                output.discard()
            raise
    check_share(outcome, output.last)
    return outcome


@dataclass
class Sums:
    """Sums over the steps of an epoch so far."""

    loss: Tensor | float = 0.0
    steps: int = 0
    seconds: float = 0.0


class Training:
    """One training, from its start or from a checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: TrainingData,
        settings: Settings,
        accelerator: Any,
    ) -> None:
        self.model, self.recipe, self.data, self.settings = model, recipe, data, settings
        self.accelerator = accelerator
        self.order = Order(
            length(data.images),
            recipe.batch_size,
            recipe.accumulate,
            recipe.seed,
            accelerator.num_processes,
            accelerator.process_index,
        )
        self.total = recipe.epochs * self.order.steps
        self.learner = Learner(
            model, recipe, data, accelerator, self.order.steps, compiled=settings.compiled
        )
        self.start, self.epoch = 0, Sums()
        self._main = bool(accelerator.is_main_process)
        self._log_every = settings.log_every or method_recipe(model).log_every or LOG_EVERY

    def begin(self, output: Output) -> None:
        """A training at its first step, or at its last checkpoint."""
        request = {
            "recipe": self.recipe.to_json(),
            **self.data.about,
            "processes": self.order.processes,
            "images": self.order.images,
        }
        output.begin(request, self.settings.resume, writes=self._main)
        self.accelerator.wait_for_everyone()
        self.output = output
        workers = self.settings.workers
        self.evaluate = Evaluation(
            self.data, self.accelerator, output.best, self.recipe.batch_size, workers
        )
        last = checkpoint.read(output.checkpoints)
        if last is not None:
            self.start, state = last
            self.learner.restore(state)
            self.evaluate.best, self.epoch = state["best"], Sums(**state.get("epoch", {}))
        self.learner.schedule.step_update(self.start)

    def run(self, stop: list[int]) -> Outcome:
        """Train to the end, or until a signal is in `stop`."""
        tensorboard = self.settings.tensorboard
        root = self.output.root
        self.log = Log(root, self.start, writes=self._main, tensorboard=tensorboard)
        step = self._steps(stop)
        self.log.close()
        ended = step >= self.total
        share, before = self._fit() if ended else (None, None)
        if ended and self._main:
            save_model(self.model, self.output.last)
        self.accelerator.wait_for_everyone()
        return Outcome(
            self.log.epochs,
            self.evaluate.best,
            None if ended else step,
            self.log.steps,
            trained_share(self.model),
            share,
            before,
        )

    def _fit(self) -> tuple[float | None, float | None]:
        """Fit the learned numbers to their share of the FLOPs; all processes do the same."""
        share = trained_share(self.model)
        if self.data.calibration is None or share is None:
            return None, None
        batches = DataLoader(self.data.calibration, self.recipe.batch_size)
        images = [pixels.to(self.accelerator.device) for pixels, _ in batches]
        still = self.recipe.freeze == "method"
        with self.accelerator.autocast():
            return fit_learned(self.model, share, images, still=still)

    def _steps(self, stop: list[int]) -> int:
        """Train all epochs that are left; returns the step after the last one."""
        self.model.train()
        examples, step = Examples(self.data.images, self.recipe.seed), self.start
        batches = load(examples, self.order, step, self.total, self.settings.workers)
        try:
            if self.epoch.steps and step % self.order.steps == 0:  # its evaluation failed
                self._close_epoch(step)
            while step < self.total and not stop:
                step = self._epoch(step, batches, stop)
        finally:
            finish(batches)
        return step

    def _epoch(self, step: int, batches: Iterator[Any], stop: list[int]) -> int:
        """Train the rest of an epoch; returns the step after its last one."""
        epoch, clock = step // self.order.steps, time.perf_counter()
        end = (epoch + 1) * self.order.steps
        name = f"epoch {epoch + 1}/{self.recipe.epochs}"
        bar = self.settings.bar if self._main else no_bar
        with bar(name, end - step) as advance:
            while step < end and not stop:
                images = [next(batches) for _ in range(self.recipe.accumulate)]
                loss = self.learner.step(step, images)
                self.epoch.loss = self.epoch.loss + loss  # which may lie on another device
                self.epoch.steps += 1
                step += 1
                self._after(step, loss, last=step == end)
                advance()
                now = time.perf_counter()
                self.epoch.seconds += now - clock
                clock = now
        if step == end or stop:
            self._check_weights(step)
            if step == end:
                self._close_epoch(step)
            else:
                self._checkpoint(step)
        return step

    def _after(self, step: int, loss: Tensor, last: bool) -> None:
        """Log and checkpoint between the steps of an epoch."""
        every = self._checkpoint_every
        saves = bool(every) and step % every == 0
        logs = step % self._log_every == 0
        if not (saves or logs or last):
            return
        value = float(loss)
        if not math.isfinite(value):
            raise self._lost(f"the loss is {value}", step)
        if logs:
            self.log.step(step, loss=value, lr=self.learner.rate, **self.learner.figures)
        if saves and not last:
            self._check_weights(step)
            self._checkpoint(step)

    @property
    def _checkpoint_every(self) -> int:
        """Steps between checkpoints within an epoch; 0: none."""
        if self.settings.every is not None:
            return self.settings.every
        return max(1, self.order.steps // 10) if self.recipe.epochs == 1 else 0

    def _close_epoch(self, step: int) -> None:
        """Evaluate, log, and begin new sums. An evaluation that fails, of an image that cannot be
        read, loses nothing, and is made up for when the training goes on."""
        try:
            self._end_epoch(step // self.order.steps, step, self.epoch)
            self.epoch = Sums()
        finally:
            self._checkpoint(step)

    def _end_epoch(self, epoch: int, step: int, sums: Sums) -> None:
        images = sums.steps * self.order.together
        figures = {
            "epoch": epoch,
            "lr": self.learner.rate,
            "loss": float(sums.loss) / sums.steps,
            **self.evaluate(self.model),
            "seconds": sums.seconds,
            "images_per_second": images / sums.seconds,
        }
        self.log.epoch(step, **figures)
        if self._main:
            self.settings.report(figures)

    def _checkpoint(self, step: int) -> None:
        if self._main:
            state = self.learner.state() | {"best": self.evaluate.best, "epoch": vars(self.epoch)}
            checkpoint.write(self.output.checkpoints, step, state, self.settings.keep)

    def _check_weights(self, step: int) -> None:
        """Weights that are no numbers are neither kept nor measured."""
        if not self.learner.is_finite():
            raise self._lost("weights are not finite", step)

    def _lost(self, what: str, step: int) -> TrainError:
        kept = checkpoint.last(self.output.checkpoints)
        where = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        start = f", from it by --initial-checkpoint {kept}" if kept else ""
        return TrainError(
            f"{what} at step {step}: {where}; begin again in another --output with a smaller --lr, "
            f"or --clip-grad 1{start}"
        )
