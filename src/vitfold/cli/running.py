"""Where and how a training runs, as the command line says it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitfold.cli import values
from vitfold.cli.groups import Group, option
from vitfold.cli.recipe import by
from vitfold.errors import TrainError


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
