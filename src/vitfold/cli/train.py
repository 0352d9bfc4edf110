"""`vitfold train`: train a model, dense or folded, under timm's option names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from vitfold.cli import options, show, subject, values
from vitfold.cli.groups import Group, grouped, option
from vitfold.cli.recipe import Learning, Looks, by
from vitfold.errors import MissingExtra, TrainError
from vitfold.folding.calls import folds
from vitfold.lab import plots
from vitfold.train import Outcome, Recipe, Settings, TrainingData, create_accelerator
from vitfold.train import train as train_
from vitfold.train.evaluators import Evaluator
from vitfold.train.outcome import OutOfReach
from vitfold.train.output import BEST, LAST, earlier_request


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
        int | None, option("Steps between lines in the log.", min=1, **by("log_every"))
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

    def settings(self, accelerator: Any) -> Settings:
        """For the loop."""
        return Settings(
            self.output,
            resume=self.resume,
            every=self.checkpoint_every,
            keep=self.checkpoint_hist,
            workers=self.workers,
            log_every=self.log_interval,
            tensorboard=self.tensorboard,
            compiled=self.torchcompile,
            accelerator=accelerator,
            bar=show.bar,
            report=_report,
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
    earlier_request(values.directory(running.output), running.resume)
    accelerator = create_accelerator(running.on, mixed)
    chosen = subject.choose(model, data, start, learning.seed)
    teacher = subject.teacher(learning.teacher, chosen.model)
    ours = subject.begin(chosen, choice, start, running, learning.seed, accelerator)
    recipe = learning.recipe(ours, looks)
    chosen.images.transform = chosen.source.augment(chosen.model, recipe.augment)
    about: dict[str, Any] = {"model": model, "teacher": learning.teacher, "precision": mixed}
    about |= start.about | data.about | chosen.about
    about["method"] = [record.method.to_json() for record in folds(ours)]
    material = subject.material(chosen, ours, data, teacher, about)
    outcome = _train(ours, recipe, material, running.settings(accelerator))
    if accelerator.is_main_process:
        _show(model, outcome, running.output, chosen.evaluator)


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
