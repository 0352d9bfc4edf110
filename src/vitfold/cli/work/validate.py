"""Accuracy of images and of pixels, as `vitfold validate` shows it."""

from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from vitfold.cli import show, values
from vitfold.cli.images import batches_of, photographs
from vitfold.cli.work.serving import answering, calibrated
from vitfold.data import Source, classes_of, evenly, untouched
from vitfold.exporting.runtime import Runtime
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.segment import Report as SceneReport
from vitfold.segment import SceneSource, score
from vitfold.segment.pictures import compare
from vitfold.tools import draw
from vitfold.tools.answers import classes_of_head
from vitfold.tools.fidelity import FIGURES, Fidelity, fidelity
from vitfold.tools.validate import Report
from vitfold.tools.validate import validate as validate_

__all__ = ["SceneSource", "calibrated", "of_fidelity", "of_images", "of_pixels"]


def of_images(
    name: str,
    ours: nn.Module,
    source: Source,
    limit: int | None,
    batch_size: int,
    workers: int,
    amp: torch.dtype | None,
    runtime: Runtime,
) -> dict[str, Any]:
    """The report on images of one class."""
    batches = batches_of(ours, source, limit, batch_size, workers)
    _note_classes(ours, source, batches)
    on = next(ours.parameters()).device
    served, dense = answering(ours, runtime), runtime.dense(clone(ours))
    with show.bar("validating", _count(batches)) as progress:
        report = validate_(served, batches, dense=dense, device=on, amp=amp, progress=progress)
    _show(_title(name, ours, runtime), report)
    return report.to_json()


def of_fidelity(
    name: str,
    ours: nn.Module,
    source: Source,
    limit: int | None,
    batch_size: int,
    workers: int,
    amp: torch.dtype | None,
    runtime: Runtime,
) -> dict[str, Any]:
    """The report on images without labels: how near the folded model stays to the dense one."""
    batches = photographs(ours, source, limit, batch_size, workers)
    on = next(ours.parameters()).device
    served, dense = answering(ours, runtime), runtime.dense(clone(ours))
    with show.bar("comparing", _count(batches)) as progress:
        report = fidelity(served, batches, dense=dense, device=on, amp=amp, progress=progress)
    rows = [["images", str(report.images), ""], *report.rows()]
    columns = ["beside the dense model", "", INTERVAL]
    show.table(_title(name, ours, runtime), columns, rows)
    return report.to_json()


def _title(name: str, ours: nn.Module, runtime: Runtime) -> str:
    """What a table is of; the dense model beside it is always in eager torch."""
    beside = "" if runtime.eager else "; dense in eager torch"
    return f"{name}, {fold_of(ours).method}, in {runtime}{beside}"


def _count(batches: object) -> int | None:
    """How many batches there are; None of a stream, which does not know."""
    return len(batches) if isinstance(batches, Sized) else None


INTERVAL = "95 % interval"


def _note_classes(model: nn.Module, source: Source, batches: Any) -> None:
    """Say so where labels may not mean what they do in the model."""
    classes, head = classes_of(getattr(batches, "dataset", None)), classes_of_head(model)
    if classes and head and classes < head and not source.class_map:
        show.note(
            f"the images are of {classes} classes, numbered in the order of their folders, and the "
            f"model has {head}: where its numbers are others, give --class-map"
        )


def of_pixels(
    name: str,
    ours: nn.Module,
    source: SceneSource,
    limit: int | None,
    stride: int | None,
    workers: int,
    amp: torch.dtype | None,
    runtime: Runtime,
    drawn: int,
    output: Path,
) -> dict[str, Any]:
    """The report on images with a class for every pixel, and pictures of so many of them."""
    if drawn:
        values.directory(output)
    images = evenly(untouched(ours, source), limit)
    scenes = DataLoader(images, batch_size=None, num_workers=workers)
    served, dense = answering(ours, runtime), clone(ours)
    with show.bar("validating", len(images)) as progress:
        report = score(served, dense, scenes, stride=stride, amp=amp, progress=progress)
    _show_pixels(_title(name, ours, runtime), report)
    if drawn:
        _draw(served, dense, source, drawn, stride, output)
    ious = {f"iou_{number}": iou for number, iou in enumerate(report.ious)}
    return {n: value for n, value in report.to_json().items() if n != "ious"} | ious


def _draw(
    served: nn.Module,
    dense: nn.Module,
    source: SceneSource,
    number: int,
    stride: int | None,
    output: Path,
) -> None:
    """Pictures of some scenes, evenly spaced."""
    scenes = evenly(source.open(), number)
    for place in range(len(scenes)):
        raw, labels = scenes[place]
        target = output / f"scene-{place + 1}.png"
        look = source.whole(dense)
        picture = compare(served, to_pil_image(raw), look, labels, stride, dense)
        draw.save(picture, target)
        show.written(target)


def _show_pixels(title: str, report: SceneReport) -> None:
    rows = [
        ["images", str(report.images)],
        ["mIoU", f"{report.miou:.2%}"],
        ["pixels", f"{report.accuracy:.2%}"],
        ["dense mIoU", f"{report.dense_miou:.2%}"],
        ["agrees with dense", f"{report.agreement:.2%}"],
        ["images/s", f"{report.images_per_second:.1f}"],
    ]
    show.table(title, ["", "folded"], rows)
    cells = ["-" if iou is None else f"{iou:.2%}" for iou in report.ious]
    each = [[str(number), iou] for number, iou in enumerate(cells)]
    show.table("by class", ["class", "IoU"], each)


def _agreement(beside: Fidelity | None) -> str:
    """The interval of the share of images of the same class."""
    if beside is None or beside.agreement is None:
        return ""
    return f"{beside.agreement.low:.2%} to {beside.agreement.high:.2%}"


def _show(title: str, report: Report) -> None:
    beside = [] if report.fidelity is None else report.fidelity.rows()
    rows = [
        ["images", str(report.images), ""],
        ["top-1", f"{report.top1:.2%}", f"{report.top1_low:.2%} to {report.top1_high:.2%}"],
        ["top-5", f"{report.top5:.2%}", ""],
        ["dense top-1", f"{report.dense_top1:.2%}", ""],
        ["agrees with dense", f"{report.agreement:.2%}", _agreement(report.fidelity)],
        *(row for row in beside if row[0] != FIGURES["agreement"]),
        ["images/s", f"{report.images_per_second:.1f}", ""],
    ]
    show.table(title, ["", "folded", INTERVAL], rows)
