"""`vitfold freeze`: fixed numbers of tokens, taken from learned thresholds."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn
from torch.utils.data import DataLoader

from vitfold import freeze as freeze_
from vitfold.calls import folded
from vitfold.cli import options, show
from vitfold.cli.groups import grouped
from vitfold.cli.images import batches_of
from vitfold.data import AnySource, evenly, untouched
from vitfold.errors import DataError
from vitfold.fold import clone
from vitfold.freeze import check_ragged
from vitfold.models import save_model
from vitfold.segment import VOID, Labels
from vitfold.segment import score as score_pixels
from vitfold.segment.score import segmenter
from vitfold.validate import Batch, predict, score


@grouped
def freeze(
    data: options.TrainingImages,
    model: Annotated[
        str, typer.Argument(metavar="DIR", help="Trained with LTMP, or calibrated with WardCut.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The frozen model goes here.")],
    task: options.Task = options.TASKS[0],
    ignore_label: options.IgnoreLabel = VOID,
    reduce_zero_label: options.ReduceZeroLabel = False,
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
    if output.resolve() == Path(model).resolve():
        raise DataError(f"--output {output} is the model, which learned: give another directory")
    options.directory(output)
    made = options.Made(device=device)
    pixels = options.segments(task)
    ours = made.model(model) if pixels else made.image_model(model)
    check_ragged(ours)
    held_out = replace(data, split=val_split)
    if pixels:
        labels = Labels(segmenter(ours).classes, ignore_label, reduce_zero_label)
        source: AnySource = data.scenes(labels)
        scenes = evenly(untouched(ours, held_out.scenes(labels)), limit)
    else:
        source = data.source
        batches = batches_of(ours, held_out.source, limit, batch_size, workers)
    seen = batches_of(ours, source, images, batch_size, workers, own="train")
    frozen = freeze_(copy.deepcopy(ours), (some.to(made.on) for some, _ in seen))
    if pixels:
        _show_pixels(ours, frozen, scenes, stride, workers)
    else:
        _show(ours, frozen, batches)
    save_model(frozen, output)
    show.written(output)


def _show(learned: nn.Module, frozen: nn.Module, batches: Iterable[Batch]) -> None:
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
    show.table(str(folded(frozen).method), ["", "top-1", "95 %", "agrees with dense"], rows)


def _show_pixels(
    learned: nn.Module, frozen: nn.Module, scenes: Any, stride: int | None, workers: int
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
    show.table(str(folded(frozen).method), ["", "mIoU", "agrees with dense"], rows)
