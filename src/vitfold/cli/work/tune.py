"""A tuning and its card, as `vitfold tune` shows them."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.cli import show
from vitfold.cli.groups import Group
from vitfold.cli.images import photographs
from vitfold.cli.work.models import written
from vitfold.data import Source
from vitfold.exporting.serve import check_runtime
from vitfold.lab.tuning.card import FILE, PAGE, interval
from vitfold.lab.tuning.goal import goal_of
from vitfold.lab.tuning.result import Tuned
from vitfold.lab.tuning.tune import check_place
from vitfold.lab.tuning.tune import tune as tune_
from vitfold.tools.fidelity import FIGURES


def refuse(goals: Group, runtime: str, int8: bool, output: Path) -> None:
    """Refuse what cannot be tuned, before a model is made."""
    goal_of(asdict(goals))  # type: ignore[call-overload]
    check_runtime(runtime, int8)
    check_place(output)


def sample(model: nn.Module, source: Source, limit: int, workers: int) -> Tensor:
    """Some images."""
    return torch.cat(list(photographs(model, source, limit, 64, workers, skip=True)))


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
    if result.trial is not None:
        card = result.to_json()
        speed, near = card["speed"], card["fidelity"]
        ends = f"{speed['low']:.2f} to {speed['high']:.2f}"
        rows = [["times as fast as dense", f"{speed['speedup']:.2f}", ends]]
        rows += [
            [words, f"{near[field]:.4f}", interval(near, field)]
            for field, words in FIGURES.items()
            if field in near
        ]
        runtime = f"{result.setting.runtime}, batch size {result.setting.batch_size}"
        show.table(f"{name} in {runtime}", ["", "", "quartiles, or 95 %"], rows)
    result.save(output, shlex.join(["vitfold", *sys.argv[1:]]))
    if result.trial is None:
        show.written(output / FILE)
        return
    written(name, output)
    show.written(output / PAGE)
