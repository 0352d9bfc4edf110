"""Trainings of a benchmark, by `vitfold train`: none is done twice, and a stopped one goes on."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def is_trained(place: Path) -> bool:
    """Whether the training of this directory came to its end."""
    return any((place / "last" / name).exists() for name in ("plan.json", "config.json"))


def trained(place: Path, model: str | Path, inputs: Sequence[Any]) -> Path:
    """What the training of a model by these options makes."""
    if not is_trained(place):
        command = [sys.executable, "-m", "vitfold", "train", model, *inputs]
        done = subprocess.run(
            [str(part) for part in [*command, "--output", place, "--resume"]], check=False
        )
        if done.returncode and not is_trained(place):
            raise SystemExit(done.returncode)
    return place / "last"


def minutes(place: Path) -> str:
    """How long the epochs of a training took; a run that was stopped tells of its rest alone."""
    with (place / "log.csv").open(encoding="utf-8") as file:
        return f"{sum(float(r['seconds']) for r in csv.DictReader(file)) / 60:.1f}"
