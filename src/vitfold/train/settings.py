"""TrainingData and Settings: what `train` takes beside a model and a recipe."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.errors import TrainError, missing
from vitfold.train.evaluators import Evaluator, Top1

Bar = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]
"""Makes a progress bar of a name and a length; what it yields moves it on."""


@dataclass(frozen=True)
class TrainingData:
    """What a model learns from, and what it is measured on.

    images, held_out: datasets that give `(image, label)` by index, transformed for the model.
    calibration: such images as in evaluation, on which what a method has learned is fitted to the
        share of the FLOPs that it was trained for; None: it stays where training leaves it.
    classes: how many classes labels are of, where images are mixed.
    evaluator: how good the model is on held-out images.
    teacher: the model to distill from; None: a copy of the model, as it is now and not folded.
    about: what else decides the result; a training goes on only where it is the same.
    """

    images: Any
    held_out: Any = None
    calibration: Any = None
    classes: int | None = None
    evaluator: Evaluator = field(default_factory=Top1)
    teacher: nn.Module | None = None
    about: dict[str, Any] = field(default_factory=dict)


@contextmanager
def no_bar(_what: str, _total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar that shows nothing."""
    yield lambda: None


@dataclass(frozen=True)
class Settings:
    """Where and how a training runs; nothing of it changes what comes out.

    output: the directory that everything goes to.
    resume: go on from the last checkpoint there, if there is one.
    every: steps between checkpoints, besides the one of every epoch; 0: none; None: a tenth of the
        epoch where there is only one.
    keep: how many checkpoints stay.
    workers: processes that read images.
    log_every: steps between lines in the log; None: as the method wants it, or 50.
    tensorboard: log for TensorBoard too.
    compiled: run the model through `torch.compile`.
    accelerator: what `create_accelerator` makes; None: the device that accelerate finds.
    bar, report: show progress, and the figures of every epoch.
    """

    output: Path
    resume: bool = False
    every: int | None = 0
    keep: int = 3
    workers: int = 0
    log_every: int | None = None
    tensorboard: bool = False
    compiled: bool = False
    accelerator: Any = None
    bar: Bar = no_bar
    report: Callable[[dict[str, float]], None] = field(default=lambda _: None)


def create_accelerator(device: str = "auto", precision: str = "no") -> Any:
    """accelerate's Accelerator, for one device or for many as its launcher has set them up."""
    try:
        import accelerate
    except ImportError:
        raise missing("accelerate", "train") from None
    accelerate.state.AcceleratorState._reset_state()  # of a training before this one
    accelerator = accelerate.Accelerator(cpu=device == "cpu", mixed_precision=precision)
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainError("--amp-dtype float16 is for GPUs: on a CPU use bfloat16")
    return accelerator
