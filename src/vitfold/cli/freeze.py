"""`vitfold freeze`: fixed numbers of tokens, taken from learned thresholds."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn
from torch.utils.data import DataLoader

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.images import batches_of
from vitfold.data import SceneSource, evenly, untouched
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.saving.models import save_model
from vitfold.segment import score as score_pixels
from vitfold.tools.freeze import check_ragged
from vitfold.tools.freeze import freeze as freeze_
from vitfold.tools.validate import Batch, predict, score


@grouped
def freeze(
    data: options.TrainingImages,
    task: options.Task,
    model: Annotated[
        str, typer.Argument(metavar="DIR", help="Trained with LTMP, or calibrated with WardCut.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The frozen model goes here.")],
    stride: options.Stride = None,
    val_split: Annotated[str, typer.Option(help="Both are measured on it.")] = "validation",
    images: Annotated[int, typer.Option(min=1, help="For the means, evenly spaced.")] = 512,
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 64,
    workers: options.Workers = 0,
    device: options.Device = "cpu",
) -> None:
    """Give every image the mean number of tokens of a model whose images keep numbers of their own.

    The frozen model compiles, exports and runs in batches like any other; the accuracy of both is
    shown.
    """
    values.directory_beside(output, model)
    made = options.Made(device=device)
    ours = task.model(made, model)
    check_ragged(ours)
    held_out = task.source(replace(data, split=val_split), ours)
    if isinstance(held_out, SceneSource):
        scenes = evenly(untouched(ours, held_out), limit)
        judged = partial(_of_pixels, ours, scenes, stride, workers)
    else:
        judged = partial(_of_images, ours, batches_of(ours, held_out, limit, batch_size, workers))
    source = task.source(data, ours)
    seen = batches_of(ours, source, images, batch_size, workers, own="train")
    frozen = freeze_(copy.deepcopy(ours), (some.to(made.on) for some, _ in seen))
    judged(frozen)
    save_model(frozen, output)
    show.written(output)


def _of_images(learned: nn.Module, batches: Iterable[Batch], frozen: nn.Module) -> None:
    """How right the frozen model is, the one that learned, and the dense one."""
    said, on = {}, next(learned.parameters()).device
    for name, candidate in (("dense", clone(learned)), ("learned", learned), ("frozen", frozen)):
        with show.bar(name, None) as progress:
            said[name] = predict(candidate, batches, device=on, progress=progress)
    rows = []
    for name, predictions in said.items():
        report = score(predictions, said["dense"])
        span = f"{report.top1_low:.2%} to {report.top1_high:.2%}"
        rows.append([name, f"{report.top1:.2%}", span, f"{report.agreement:.2%}"])
    show.table(str(fold_of(frozen).method), ["", "top-1", "95 %", "agrees with dense"], rows)


def _of_pixels(
    learned: nn.Module, scenes: Any, stride: int | None, workers: int, frozen: nn.Module
) -> None:
    """The same of segmenters."""
    rows = []
    for name, candidate in (("learned", learned), ("frozen", frozen)):
        loaded = DataLoader(scenes, batch_size=None, num_workers=workers)
        with show.bar(name, len(scenes)) as progress:
            report = score_pixels(
                candidate, clone(learned), loaded, stride=stride, progress=progress
            )
        rows.append([name, f"{report.miou:.2%}", f"{report.agreement:.2%}"])
    rows.insert(0, ["dense", f"{report.dense_miou:.2%}", ""])
    show.table(str(fold_of(frozen).method), ["", "mIoU", "agrees with dense"], rows)
