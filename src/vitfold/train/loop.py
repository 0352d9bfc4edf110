"""The loop: steps, evaluations and checkpoints, on one device or many."""

import contextlib
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitfold.errors import TrainError
from vitfold.folding.calls import folds
from vitfold.folding.fold import unfold
from vitfold.saving.models import check_saves, save_model
from vitfold.tools.results import write_text
from vitfold.train import checkpoint
from vitfold.train.examples import (
    STEP,
    Examples,
    Order,
    finish,
    length,
    load,
    mixing,
    own_randomness,
    seed_all,
)
from vitfold.train.judge import Judge, Top1
from vitfold.train.log import Log, lenient
from vitfold.train.objective import Objective
from vitfold.train.optimizing import PlainStep, SharpnessAwareStep, freezing, optimizer, scheduler
from vitfold.train.outline import (
    BEST,
    CHECKPOINTS,
    LAST,
    RECIPE,
    Outcome,
    Settings,
    begun,
    check_share,
    create_accelerator,
    no_bar,
    same,
    signals,
)
from vitfold.train.reach import reach
from vitfold.train.recipe import Recipe


def train(
    model: nn.Module,
    recipe: Recipe,
    images: Any,
    held_out: Any = None,
    *,
    settings: Settings,
    accelerator: Any = None,
    teacher: nn.Module | None = None,
    classes: int | None = None,
    calibration: Any = None,
    judge: Judge | None = None,
    about: dict[str, Any] | None = None,
) -> Outcome:
    """Train `model` in place, folded or not.

    images, held_out: datasets that give `(image, label)` by index, transformed for the model.
    teacher: what to distill from; None: a copy of the model, as it is now and not folded.
    classes: of the labels, where images are mixed.
    calibration: images as in evaluation, on which what a method has learned is brought to the share
        of the FLOPs that it was trained for; None: it stays where training left it.
    judge: says how good the model is on held-out images; None: by its top-1.
    about: what else decides the result; a training goes on only where it is the same.
    """
    check_saves(model)
    accelerator = accelerator or create_accelerator()
    with own_randomness(), freezing(model, recipe.freeze), signals() as stop:
        training = Training(
            model,
            recipe,
            images,
            held_out,
            settings,
            accelerator,
            teacher,
            classes,
            judge or Top1(),
            about or {},
        )
        outcome = training.run(stop, calibration)
    check_share(outcome, settings.output)
    return outcome


class Training:
    """One training, from its start or from a checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        images: Any,
        held_out: Any,
        settings: Settings,
        accelerator: Any,
        teacher: nn.Module | None,
        classes: int | None,
        judge: Judge,
        about: dict[str, Any],
    ) -> None:
        self.model, self.recipe, self.settings = model, recipe, settings
        self.accelerator, self.held_out, self.judge = accelerator, held_out, judge
        self.order = Order(
            length(images),
            recipe.batch_size,
            recipe.accumulate,
            recipe.seed,
            accelerator.num_processes,
            accelerator.process_index,
        )
        self.total = recipe.epochs * self.order.steps
        self.examples = Examples(images, recipe.seed)
        self.mix = mixing(recipe, classes)
        self.checkpoints = settings.output / CHECKPOINTS
        found = self._open(
            {**about, "processes": accelerator.num_processes, "images": self.order.images}
        )
        self.start, state = found or (0, None)
        self.best: float | None = None
        self.epoch = Sums()
        self._set_up(teacher)
        if state:
            self._restore(state)
        self.schedule.step_update(self.start)

    def _set_up(self, teacher: nn.Module | None) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        if recipe.distill and teacher is None:
            teacher = unfold(copy.deepcopy(self.model))
        if teacher is not None:
            teacher.to(accelerator.device).requires_grad_(False)
        self.told = Objective(self.model, self._smoothing, recipe.distill, teacher)
        self.model.to(accelerator.device)
        self.learned = [record.learned for record in folds(self.model) if record.learned]
        if self.learned and self.settings.compiled:
            raise TrainError("what a method learns is not seen in a compiled model: do not compile")
        self.inner = optimizer(
            self.model, recipe.optimizer, recipe.rates, frozen=recipe.freeze == "model"
        )
        self.objective = accelerator.prepare(
            torch.compile(self.told) if self.settings.compiled else self.told
        )
        prepared = accelerator.prepare(self.inner)
        self.update = (
            SharpnessAwareStep(prepared, recipe.sam) if recipe.sam else PlainStep(prepared)
        )
        self.schedule = scheduler(self.inner, recipe.schedule, recipe.epochs, self.order.steps)

    @property
    def _smoothing(self) -> float:
        return 0.0 if self.mix else self.recipe.smoothing  # mixed labels come smoothed

    @property
    def _every(self) -> int:
        """Steps between checkpoints within an epoch; 0: none."""
        if self.settings.every is not None:
            return self.settings.every
        return max(1, self.order.steps // 10) if self.recipe.epochs == 1 else 0

    def run(self, stop: list[int], calibration: Any = None) -> Outcome:
        """Go on to the end, or until a signal is in `stop`."""
        self.log = Log(
            self.settings.output,
            self.start,
            writes=self._main,
            tensorboard=self.settings.tensorboard,
        )
        self.model.train()
        batches = load(self.examples, self.order, self.start, self.total, self.settings.workers)
        step = self.start
        try:
            if self.epoch.steps and step % self.order.steps == 0:  # its evaluation failed
                self._close_epoch(step)
            while step < self.total and not stop:
                step = self._epoch(step, batches, stop)
        finally:
            finish(batches)
        self.log.close()
        stopped = step if step < self.total else None
        reached, before = (None, None) if stopped is not None else self._reach(calibration)
        if stopped is None and self._main:
            save_model(self.model, self.settings.output / LAST)
        self.accelerator.wait_for_everyone()
        return Outcome(
            self.log.epochs, self.best, stopped, self.log.steps, self._asked, reached, before
        )

    @property
    def _asked(self) -> float | None:
        """The share of the FLOPs that is trained for."""
        methods = [record.method for record in folds(self.model)]
        return getattr(methods[0], "flops", None) if methods and methods[0].ragged else None

    def _reach(self, calibration: Any) -> tuple[float | None, float | None]:
        """Bring what was learned to that share; all processes do the same."""
        if calibration is None or self._asked is None:
            return None, None
        batches = DataLoader(calibration, self.recipe.batch_size)
        images = [pixels.to(self.accelerator.device) for pixels, _ in batches]
        with self.accelerator.autocast():
            return reach(self.model, self._asked, images, still=self.recipe.freeze == "method")

    def _epoch(self, step: int, batches: Iterator[Any], stop: list[int]) -> int:
        """The rest of an epoch; the step after its last one."""
        epoch, clock = step // self.order.steps, time.perf_counter()
        end = (epoch + 1) * self.order.steps
        name = f"epoch {epoch + 1}/{self.recipe.epochs}"
        bar = self.settings.bar if self._main else no_bar
        with bar(name, end - step) as advance:
            while step < end and not stop:
                loss = self._step(step, [next(batches) for _ in range(self.recipe.accumulate)])
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

    def _close_epoch(self, step: int) -> None:
        """Evaluate, log, and begin new sums. An evaluation that fails, of an image that cannot be
        read, loses nothing, and is made up for when the training goes on."""
        try:
            self._end_epoch(step // self.order.steps, step, self.epoch)
            self.epoch = Sums()
        finally:
            self._checkpoint(step)

    def _step(self, step: int, batches: list[Any]) -> Tensor:
        loss: Tensor = self.update(lambda: self._backward(step, batches), self._clip)
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
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective)
            with alone:
                loss = self.objective(images, labels) / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip(self) -> None:
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)

    def _after(self, step: int, loss: Tensor, last: bool) -> None:
        """Log and checkpoint between the steps of an epoch."""
        every = self._every
        saves = bool(every) and step % every == 0
        logs = step % self.settings.log_every == 0
        if not (saves or logs or last):
            return
        value = float(loss)
        if not math.isfinite(value):
            raise self._lost(f"the loss is {value}", step)
        if logs:
            self.log.step(step, loss=value, lr=self._rate, **self.told.figures)
        if saves and not last:
            self._check_weights(step)
            self._checkpoint(step)

    def _lost(self, what: str, step: int) -> TrainError:
        kept = checkpoint.last(self.checkpoints)
        where = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        start = f", from it by --initial-checkpoint {kept}" if kept else ""
        return TrainError(
            f"{what} at step {step}: {where}; begin again in another --output with a smaller --lr, "
            f"or --clip-grad 1{start}"
        )

    def _check_weights(self, step: int) -> None:
        """Weights that are no numbers are neither kept nor measured."""
        floating = [p.detach() for p in self.model.parameters() if p.is_floating_point()]
        if not all(bool(weight.isfinite().all()) for weight in floating):
            raise self._lost("weights are not finite", step)

    def _end_epoch(self, epoch: int, step: int, sums: "Sums") -> None:
        figures = {"epoch": epoch, "lr": self._rate, "loss": float(sums.loss) / sums.steps}
        if self.held_out is not None:
            figures[self.judge.figure] = self._evaluate()
        images = sums.steps * self.order.together
        figures |= {"seconds": sums.seconds, "images_per_second": images / sums.seconds}
        reached = figures.get(self.judge.figure)
        # Of what reduces more from step to step, an earlier state is no better one.
        grows = any(record.method.ragged for record in folds(self.model))
        if reached is not None and not grows and (self.best is None or reached > self.best):
            self.best = reached
            if self._main:
                with lenient(BEST):
                    save_model(self.model, self.settings.output / BEST)
        self.log.epoch(step, **figures)
        if self._main:
            self.settings.say(figures)

    def _evaluate(self) -> float:
        """The judge's figure on the held-out images, shared out among the processes."""
        batches = self.judge.batches(
            self.held_out,
            self.order.rank,
            self.order.processes,
            self.recipe.batch_size,
            self.settings.workers,
        )
        self.model.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            counts = self.judge.count(self.model, batches, self.accelerator.device)
        self.model.train()
        return self.judge.value(self.accelerator.reduce(counts))

    def _checkpoint(self, step: int) -> None:
        if self._main:
            checkpoint.write(self.checkpoints, step, self._state(), self.settings.keep)

    def _state(self) -> dict[str, Any]:
        """What a training goes on from."""
        schedule, scaler = self.schedule.state_dict(), self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.inner.state_dict(),
            "schedule": {name: value for name, value in schedule.items() if not callable(value)},
            "scaler": scaler.state_dict() if scaler else {},
            "best": self.best,
            "epoch": vars(self.epoch),
        }

    def _restore(self, state: Any) -> None:
        """Be as that was."""
        self.model.load_state_dict(state["model"])
        self.inner.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best, self.epoch = state["best"], Sums(**state.get("epoch", {}))

    def _open(self, about: dict[str, Any]) -> tuple[int, Any] | None:
        """The checkpoint to go on from, in a directory that is this training's own."""
        output = self.settings.output
        asked = json.loads(json.dumps({"recipe": self.recipe.to_json(), **about}))
        before = begun(output, self.settings.resume)
        if before is not None:
            same(before, asked, "")
        if self._main:
            output.mkdir(parents=True, exist_ok=True)
            checkpoint.tidy(self.checkpoints)
            write_text(output / RECIPE, json.dumps(asked, indent=2) + "\n")
        self.accelerator.wait_for_everyone()
        return checkpoint.read(self.checkpoints)

    @property
    def _rate(self) -> float:
        return float(self.inner.param_groups[0]["lr"])

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)


@dataclass
class Sums:
    """Over the steps of an epoch so far."""

    loss: Tensor | float = 0.0
    steps: int = 0
    seconds: float = 0.0
