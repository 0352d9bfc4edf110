"""A training, as `vitfold train` runs and shows it."""

from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from vitfold.cli import show, values
from vitfold.cli.recipe import Learning, Looks, Teaching
from vitfold.cli.running import Running
from vitfold.cli.subject import Choice, Data, Start
from vitfold.cli.work import subject
from vitfold.cli.work.models import written
from vitfold.cli.work.start import begin
from vitfold.errors import MissingExtra
from vitfold.folding.calls import folds
from vitfold.lab import plots
from vitfold.train import Outcome, Recipe, Settings, TrainingData, create_accelerator
from vitfold.train import train as train_
from vitfold.train.evaluators import Evaluator
from vitfold.train.outcome import OutOfReach
from vitfold.train.output import BEST, LAST, earlier_request


def run(
    model: str,
    data: Data,
    start: Start,
    choice: Choice,
    learning: Learning,
    teaching: Teaching,
    looks: Looks,
    running: Running,
    dtype: torch.dtype | None,
) -> None:
    """Make the model and its images ready, train it and show what came of it."""
    mixed = PRECISIONS[dtype]
    earlier_request(values.directory(running.output), running.resume)
    accelerator = create_accelerator(running.on, mixed)
    task = subject.choose(model, data, start, learning.seed)
    teacher = subject.teacher(teaching.teacher, task.model)
    ours = begin(task, choice, start, running, learning.seed, accelerator)
    recipe = learning.recipe(ours, teaching, looks)
    task.images.transform = task.source.augment(task.model, recipe.augment)
    about: dict[str, Any] = {"model": model, "teacher": teaching.teacher, "precision": mixed}
    about |= start.about | data.about | task.about
    about["method"] = [record.method.to_json() for record in folds(ours)]
    material = subject.material(task, ours, data, teacher, about)
    outcome = _train(ours, recipe, material, _settings(running, accelerator))
    if accelerator.is_main_process:
        _show(model, outcome, running.output, task.evaluator)


def _settings(running: Running, accelerator: Any) -> Settings:
    """How the training runs, as the loop takes it."""
    return Settings(
        running.output,
        resume=running.resume,
        every=running.checkpoint_every,
        keep=running.checkpoint_hist,
        workers=running.workers,
        log_every=running.log_interval,
        tensorboard=running.tensorboard,
        compiled=running.torchcompile,
        accelerator=accelerator,
        bar=show.bar,
        report=_report,
    )


def _train(model: nn.Module, recipe: Recipe, data: TrainingData, settings: Settings) -> Outcome:
    """Train; where thresholds miss their share there is a picture of them too."""
    try:
        return train_(model, recipe, data, settings)
    except OutOfReach as error:
        if settings.accelerator.is_main_process:
            _draw(settings.output / LEARNED, error.outcome.steps)
        raise


PRECISIONS = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""What accelerate calls them."""

LEARNED = "learned.png"

NAMES = {"top1": "top-1", "miou": "mIoU"}
"""What figures of an epoch are called."""


def _report(figures: dict[str, float]) -> None:
    known = [f", {NAMES[figure]} {figures[figure]:.2%}" for figure in NAMES if figure in figures]
    show.console.print(
        f"epoch {figures['epoch']:.0f}: loss {figures['loss']:.4f}{''.join(known)}, "
        f"{figures['images_per_second']:.0f} images/s"
    )


def _show(name: str, outcome: Outcome, output: Path, evaluator: Evaluator) -> None:
    if outcome.stop is not None:
        show.note(f"stopped after step {outcome.stop}: go on with --resume")
        raise typer.Exit(130)
    figure = NAMES[evaluator.figure]
    best = [] if outcome.best is None else [[f"best {figure}", f"{outcome.best:.2%}"]]
    figures = outcome.epochs[-1]
    rows = [["epochs", str(len(outcome.epochs))], ["loss", f"{figures['loss']:.4f}"], *best]
    if outcome.share is not None:
        rows += [
            ["FLOPs asked", f"{outcome.target:.1%}"],
            ["FLOPs reached", f"{outcome.share:.1%}"],
        ]
    show.table(f"{name}, trained", ["", "figures"], rows)
    _draw(output / LEARNED, outcome.steps)
    for kept in (BEST, LAST) if best else (LAST,):
        written(name, output / kept)


def _draw(path: Path, steps: list[dict[str, Any]]) -> None:
    """The picture of thresholds, where there are any; a training is not lost for want of a
    library."""
    if not any("share" in figures for figures in steps):
        return
    try:
        plots.learned(path, steps)
    except MissingExtra as error:
        show.note(f"no picture: {error}")
    else:
        show.written(path)
