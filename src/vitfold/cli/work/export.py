"""An export and its report, as `vitfold export` shows them."""

from pathlib import Path

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


def sample(model: nn.Module, source: Source, limit: int, workers: int, int8: bool) -> Tensor | None:
    """Some images; None where there are none to be had, and none are needed."""
    if not source.is_set and not dataset_of(model):
        if int8:
            raise DataError("--int8 takes its ranges from images: give --data-dir FOLDER (or tar)")
        return None
    return images.sample(model, source, limit, workers)


def written(
    model: nn.Module,
    output: Path,
    target: str,
    images: Tensor | None,
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
            images=images,
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
    near = {c.name: c.fidelity.to_json() for c in report.corners if c.fidelity is not None}
    if not near:
        return
    names = list(dict.fromkeys(name for figures in near.values() for name in figures))
    shown = [n for n in names if n != "images" and not n.endswith(("_low", "_high"))]
    rows = [
        [name, *(f"{figures[n]:.4f}" if n in figures else "" for n in shown)]
        for name, figures in near.items()
    ]
    show.table("beside the dense model in eager torch", ["", *shown], rows)
