"""Around a training: where it runs, how it was begun, and what it came to."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfold.errors import TrainError, missing, one_line
from vitfold.train import checkpoint
from vitfold.train.reach import NEAR

Bar = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]
"""Makes a progress bar of a name and a length; what it yields moves it on."""

RECIPE = "recipe.json"

BEST, LAST, CHECKPOINTS = "best", "last", "checkpoints"


@contextlib.contextmanager
def no_bar(_what: str, _total: int | None) -> Iterator[Callable[[], None]]:
    """Shows nothing."""
    yield lambda: None


@dataclass(frozen=True)
class Settings:
    """Where and how a training runs; nothing of it changes what comes out.

    output: where everything goes.
    resume: go on from the last checkpoint there, if there is one.
    every: steps between checkpoints, besides the one of every epoch; 0: none; None: a tenth of the
        epoch where there is only one.
    keep: how many checkpoints stay.
    workers: processes that read images.
    log_every: steps between lines in the log.
    compiled: run the model through `torch.compile`.
    bar, say: show progress, and what every epoch came to.
    """

    output: Path
    resume: bool = False
    every: int | None = 0
    keep: int = 3
    workers: int = 0
    log_every: int = 50
    tensorboard: bool = False
    compiled: bool = False
    bar: Bar = no_bar
    say: Callable[[dict[str, float]], None] = field(default=lambda _: None)


def create_accelerator(device: str = "auto", precision: str = "no") -> Any:
    """What accelerate finds: one device, or many as its launcher has set them up."""
    try:
        import accelerate
    except ImportError:
        raise missing("accelerate", "train") from None
    accelerate.state.AcceleratorState._reset_state()  # of a training before this one
    made = accelerate.Accelerator(cpu=device == "cpu", mixed_precision=precision)
    if precision == "fp16" and made.device.type == "cpu":
        raise TrainError("--amp-dtype float16 is for GPUs: on a CPU use bfloat16")
    return made


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Signals that ask for an end, in a list; a training then ends after its step."""
    caught: list[int] = []
    before = {}
    with contextlib.suppress(ValueError):  # only the main thread may ask for signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda given, _: caught.append(given))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begun(output: Path, resume: bool) -> dict[str, Any] | None:
    """What the training in a directory was asked for, if it is to go on; None where a training may
    begin."""
    kept = checkpoint.last(output / CHECKPOINTS)
    if kept and not resume:
        raise TrainError(
            f"{output} holds a training: go on with it by --resume, or give another --output"
        )
    if not kept and not resume and any((output / name).exists() for name in (BEST, LAST)):
        raise TrainError(f"{output} holds what was trained before: give another --output")
    if not kept:
        return None
    path = output / RECIPE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{path} says how this training was begun, and cannot be read: {one_line(error)}; "
            "give another --output"
        ) from error
    if not isinstance(before, dict):
        raise TrainError(f"{path} is no recipe that vitfold wrote: give another --output")
    return before


def same(before: Any, now: Any, path: str) -> None:
    """Refuse to go on with what was begun in another way."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            same(before.get(key), now.get(key), f"{path}.{key}".strip("."))
    elif before != now:
        raise TrainError(f"{path} was {before!r}, now {now!r}: --resume takes the same options")


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    epochs: a row of figures each.
    best: the highest figure of the judge, where there were held-out images; its weights are in
        `best/`.
    stopped: the step at which a signal ended it; None: it went to its end.
    steps: the figures of the steps that were logged.
    asked, reached: the share of the dense FLOPs that a method was trained for, and the one that
        calibration images cost.
    before: the one that they cost before what was learned was scaled to it; None: it was not.
    """

    epochs: list[dict[str, float]]
    best: float | None
    stopped: int | None
    steps: list[dict[str, Any]] = field(default_factory=list)
    asked: float | None = None
    reached: float | None = None
    before: float | None = None


class OutOfReach(TrainError):
    """Training came to its end, and not to the share of the FLOPs that was asked for."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


def check_share(outcome: Outcome, output: Path) -> None:
    """Say so where the share that was asked for is out of reach."""
    asked, reached, before = outcome.asked, outcome.reached, outcome.before
    if asked is None or reached is None or before is None or abs(reached - asked) <= NEAR:
        return
    remedy = "train longer or at higher rates, or ask for another share"
    if before < asked:
        remedy = f"training went too far, to {before:.3f}: train at lower rates"
    raise OutOfReach(
        outcome,
        f"flops={asked} is not reached: {output / LAST} costs {reached:.3f} of the dense FLOPs; "
        f"{remedy}",
    )
