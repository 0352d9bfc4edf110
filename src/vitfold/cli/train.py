"""`vitfold train`: train a model, dense or folded, under timm's option names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from vitfold.cli import options, show, subject, values
from vitfold.cli.groups import Group, grouped, option
from vitfold.cli.recipe import Learning, Looks, by, usual
from vitfold.cli.search import SCORES
from vitfold.data import labelled, untouched
from vitfold.errors import MissingExtra, TrainError
from vitfold.folding.calls import folds
from vitfold.lab import plots
from vitfold.train import Outcome
from vitfold.train import train as train_
from vitfold.train.judge import Judge
from vitfold.train.outline import BEST, LAST, OutOfReach, Settings, begun, create_accelerator

CALIBRATION = 512
"""How many training images, evenly spaced, bring thresholds to the share that was asked for."""


@dataclass(frozen=True)
class Running(Group):
    """Where and how a training runs; nothing of it changes what comes out."""

    panel = "Running"

    output: Annotated[Path, option("Everything goes here.", "--output", "-o")] = Path(
        "output/train"
    )
    resume: Annotated[bool, option("Go on from the last checkpoint.", "--resume")] = False
    checkpoint_every: Annotated[
        int | None,
        option(
            "Steps between checkpoints, besides that of every epoch.",
            min=0,
            show_default="none; of a single epoch: a tenth",
        ),
    ] = None
    checkpoint_hist: Annotated[int, option("How many checkpoints stay.", min=1)] = 3
    log_interval: Annotated[
        int | None, option("Steps between lines in the log.", min=1, **by("log_interval"))
    ] = None
    tensorboard: Annotated[bool, option("Log for TensorBoard too.", "--tensorboard")] = False
    torchcompile: Annotated[bool, option("Compile the model.", "--torchcompile")] = False
    workers: Annotated[int, option("Processes that read images.", "--workers", "-j", min=0)] = 0
    device: Annotated[str, option("auto, cpu or cuda.")] = "auto"

    @property
    def on(self) -> str:
        """What accelerate calls the device."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise TrainError(f"--device {self.device!r}: expected auto, cpu or cuda")
        return self.device if self.device == "auto" else values.device(self.device).type

    def settings(self, log_interval: int) -> Settings:
        """For the loop.

        log_interval: where the user says none.
        """
        return Settings(
            self.output,
            resume=self.resume,
            every=self.checkpoint_every,
            keep=self.checkpoint_hist,
            workers=self.workers,
            log_every=self.log_interval or log_interval,
            tensorboard=self.tensorboard,
            compiled=self.torchcompile,
            bar=show.bar,
            say=_say,
        )


@grouped
def train(
    model: options.ModelName,
    data: subject.Data,
    start: subject.Start,
    choice: subject.Choice,
    learning: Learning,
    looks: Looks,
    running: Running,
    precision: options.Precision,
) -> None:
    """Train a model, dense or folded.

    Everything goes to --output: `best` and `last` are models for any other command, log.csv has a
    row for every epoch. On several devices or machines: `accelerate launch -m vitfold train ...`.
    """
    data.check(model)
    learning.check(looks)
    if data.pixels and looks.mix:
        raise TrainError("--mixup, --cutmix: only images of one class are mixed")
    mixed = PRECISIONS[precision.dtype]
    begun(values.directory(running.output), running.resume)
    accelerator = create_accelerator(running.on, mixed)
    chosen = subject.choose(model, data, start, learning.seed)
    base, source = chosen.model, chosen.source
    teacher = subject.teacher(learning.teacher, base)
    if choice.searches and not folds(base):
        scored = running.output / SCORES if accelerator.is_main_process else None
        seed, workers = learning.seed, running.workers
        base.to(accelerator.device)
        ours = subject.searched(base, choice, source, scored, running.resume, seed, workers)
    else:
        ours = subject.folded(base, choice)
    start.begin(ours)
    recipe = learning.recipe(ours, looks)
    chosen.images.transform = source.augment(base, recipe.augment)
    about = start.about | {
        "model": model,
        "method": [record.method.to_json() for record in folds(ours)],
        "data": [data.dataset, str(data.data_dir), data.train_split, data.class_map],
        "val_split": None if data.no_val else data.held_out,
        **chosen.about,
        "teacher": learning.teacher,
        "precision": mixed,
    }
    drifts = any(record.method.ragged for record in folds(ours))
    try:
        outcome = train_(
            ours,
            recipe,
            chosen.images,
            None if data.no_val else untouched(base, chosen.held_out),
            settings=running.settings(usual(ours)["log_interval"]),
            accelerator=accelerator,
            teacher=teacher,
            classes=chosen.classes,
            calibration=labelled(base, source, CALIBRATION, skip=True) if drifts else None,
            judge=chosen.judge,
            about=about,
        )
    except OutOfReach as missed:
        if accelerator.is_main_process:
            _draw(running.output / LEARNED, missed.outcome.steps)
        raise
    if accelerator.is_main_process:
        _show(model, outcome, running.output, chosen.judge)


PRECISIONS = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""What accelerate calls them."""

LEARNED = "learned.png"

NAMES = {"top1": "top-1", "miou": "mIoU"}
"""What figures of an epoch are called."""


def _say(figures: dict[str, float]) -> None:
    known = [f", {NAMES[figure]} {figures[figure]:.2%}" for figure in NAMES if figure in figures]
    show.console.print(
        f"epoch {figures['epoch']:.0f}: loss {figures['loss']:.4f}{''.join(known)}, "
        f"{figures['images_per_second']:.0f} images/s"
    )


def _show(name: str, outcome: Outcome, output: Path, judge: Judge) -> None:
    if outcome.stopped is not None:
        show.note(f"stopped after step {outcome.stopped}: go on with --resume")
        raise typer.Exit(130)
    best = [] if outcome.best is None else [[f"best {NAMES[judge.figure]}", f"{outcome.best:.2%}"]]
    figures = outcome.epochs[-1]
    rows = [["epochs", str(len(outcome.epochs))], ["loss", f"{figures['loss']:.4f}"], *best]
    if outcome.reached is not None:
        rows += [
            ["FLOPs asked", f"{outcome.asked:.1%}"],
            ["FLOPs reached", f"{outcome.reached:.1%}"],
        ]
    show.table(f"{name}, trained", ["", "figures"], rows)
    _draw(output / LEARNED, outcome.steps)
    for kept in (BEST, LAST) if best else (LAST,):
        show.written(output / kept)


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
