"""An export and its report, as `vitfold export` shows them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vitfold.cli import images, options, show
from vitfold.cli.work.fold import folded_by
from vitfold.data import Source
from vitfold.errors import DataError, MethodError
from vitfold.exporting.export import check_place, steps
from vitfold.exporting.export import export as export_
from vitfold.exporting.report import Corner, Report
from vitfold.exporting.targets import target as target_
from vitfold.folding.calls import folds
from vitfold.folding.fold import clone
from vitfold.saving.models import dataset_of
from vitfold.tools.results import write

Sample = tuple[Tensor | None, Tensor | None]
"""Images, and the classes of each; None: none."""

COLUMNS = ("", "MB", "batch", "ms", "quartiles", "x dense")


def refuse_place(output: Path, target: str, int8: bool, preprocess: bool) -> None:
    """Refuse what cannot be written, before a model is made."""
    kind = target_(target)
    kind.check(int8, preprocess=preprocess)
    check_place(output, kind)


def chosen(model: nn.Module, plan: Path | None, choice: options.Choice, dense: bool) -> nn.Module:
    """What is exported: the model as it is folded, or without a fold."""
    if not dense:
        return folded_by(model, plan, choice)
    if choice.is_set:
        raise MethodError("--dense exports no fold: leave out --method, --r, --flops and the like")
    return clone(model) if folds(model) else model


def sample(
    model: nn.Module, source: Source, limit: int, workers: int, int8: bool, labels: bool
) -> Sample:
    """Some images, and their labels where these are asked for; None where there are none to be
    had, and none are needed."""
    if source.is_set or dataset_of(model):
        if not labels:
            return images.sample(model, source, limit, workers), None
        batches = list(images.batches_of(model, source, limit, BATCH, workers))
        pixels, classes = (torch.cat(part) for part in zip(*batches, strict=True))
        return pixels, classes
    if int8 or labels:
        what = "--int8 takes its ranges" if int8 else "--labels takes accuracy"
        raise DataError(f"{what} from images: give --data-dir FOLDER (or tar)")
    return None, None


BATCH = 64


def written(
    model: nn.Module,
    output: Path,
    target: str,
    sample: Sample,
    batch_size: int | None,
    int8: bool,
    preprocess: bool,
    repeats: int,
) -> Report:
    """The export, with a bar."""
    with show.bar("exporting", steps(model, int8, batch_size, repeats)) as progress:
        return export_(
            model,
            output,
            target=target,
            images=sample[0],
            labels=sample[1],
            batch_size=batch_size,
            int8=int8,
            preprocess=preprocess,
            repeats=repeats,
            progress=progress,
        )


def show_report(name: str, report: Report) -> None:
    """How it agrees with eager torch, how large and how fast every form is, and how near."""
    agreement = report.agreement
    facts = [
        ["largest difference", f"{agreement.largest:.1e} ({agreement.where})"],
        ["images", str(agreement.images)],
        ["undecided by rounding", str(agreement.undecided)],
        *([["same class", f"{agreement.top1:.1%}"]] if agreement.top1 is not None else []),
        ["cosine", f"{agreement.cosine:.6f}"],
    ]
    if (inside := report.preprocess) is not None:
        facts.append(["a pixel beside Pillow's", f"{inside.largest:.0f} of 255"])
        facts.append(["from pictures", f"{inside.agreement.largest:.1e}"])
    show.table(f"{name}, {report.method or 'dense'}: float32 beside eager torch", ["", ""], facts)
    rows = [row for corner in report.corners for row in _rows(corner)]
    show.table(f"in {report.runtime}", COLUMNS, rows)
    _show_fidelity(report)
    if report.slower:
        show.note(report.slower)


def results(file: Path | None, name: str, report: Report) -> None:
    """The forms as rows, where a file is asked for."""
    if file is not None:
        rows = [corner.to_json() for corner in report.corners]
        write(file, rows, {"command": "export", "model": name, "target": report.target})
        show.written(file)


def _rows(corner: Corner) -> list[list[str]]:
    rows = []
    for size in corner.times:
        middle, low, high = corner.milliseconds(size).values()
        cells = [f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{corner.speedups[size]:.2f}"]
        rows.append([corner.name, f"{corner.megabytes:.1f}", str(size), *cells])
    return rows


def _show_fidelity(report: Report) -> None:
    figures = {corner.name: _figures(corner) for corner in report.corners}
    names = list(dict.fromkeys(name for each in figures.values() for name in each))
    if not names:
        return
    rows = [
        [form, *(f"{each[name]:.4f}" if name in each else "" for name in names)]
        for form, each in figures.items()
        if each
    ]
    show.table("beside the dense model in eager torch", ["", *names], rows)


def _figures(corner: Corner) -> dict[str, float]:
    """How right and how near a form is, without intervals."""
    right = {} if corner.top1 is None else {"top1": corner.top1.mean}
    near = {} if corner.fidelity is None else corner.fidelity.to_json()
    ends = ("_low", "_high")
    return right | {n: x for n, x in near.items() if n != "images" and not n.endswith(ends)}
