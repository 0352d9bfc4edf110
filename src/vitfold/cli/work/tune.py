"""A tuning and its card, as `vitfold tune` shows them."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitfold.cli import show
from vitfold.cli.groups import Group
from vitfold.cli.images import sample
from vitfold.cli.work.models import written
from vitfold.lab.tuning.card import FILE, PAGE
from vitfold.lab.tuning.goal import goal_of
from vitfold.lab.tuning.result import Tuned
from vitfold.lab.tuning.tune import check_place
from vitfold.lab.tuning.tune import tune as tune_

__all__ = ["refuse", "sample", "show_tuned", "tuned"]


def refuse(goals: Group, output: Path) -> None:
    """Refuse what cannot be tuned, before a model is made."""
    goal_of(asdict(goals))  # type: ignore[call-overload]
    check_place(output)


def tuned(model: nn.Module, images: Tensor, goals: Group, **options: Any) -> Tuned:
    """The tuned model, with a bar."""
    asked = asdict(goals)  # type: ignore[call-overload]
    with show.gauge("tuning") as tell:
        result = tune_(model, images, **asked, **options, tell=tell)
    if result.stopped:
        show.note("stopped: what was best by then is kept; the same command goes on")
    return result


def show_tuned(name: str, result: Tuned, output: Path) -> None:
    """What it came to, and the card's files."""
    show.console.print(result.words, markup=False)
    if result.fidelity is not None:
        speed = result.to_json()["speed"]
        ends = f"{speed['low']:.2f} to {speed['high']:.2f}"
        rows = [["times as fast as dense", f"{speed['speedup']:.2f}", ends]]
        rows += result.fidelity.rows()
        runtime = f"{result.setting.runtime}, batch size {result.setting.batch_size}"
        show.table(f"{name} in {runtime}", ["", "", "quartiles, or 95 %"], rows)
    result.save(output, shlex.join(["vitfold", *sys.argv[1:]]))
    if result.trial is None:
        show.written(output / FILE)
        return
    written(name, output)
    show.written(output / PAGE)
