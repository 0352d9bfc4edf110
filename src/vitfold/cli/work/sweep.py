"""Many folds of one model on the same images, as `vitfold sweep` shows it."""

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vitfold.cli import show
from vitfold.cli.images import batches_of, photographs
from vitfold.cli.work.serving import calibrated
from vitfold.data import AnySource, renormalized
from vitfold.errors import MethodError
from vitfold.exporting.runtime import Runtime
from vitfold.folding.calls import folds
from vitfold.lab.candidate import Candidate, smaller_models, trained
from vitfold.lab.candidate import baselines as baselines_
from vitfold.lab.candidate import candidates as entries
from vitfold.lab.report.columns import GFLOPS, HEADERS, PERCENT
from vitfold.lab.sweep import MORE, Batches, images_in, sweep
from vitfold.lab.sweep_file import SweepFile
from vitfold.lab.timing import Speed, busy
from vitfold.saving.models import create_model
from vitfold.tools import draw
from vitfold.tools.digest import fingerprint
from vitfold.tools.trace import trace

__all__ = [
    "SweepFile",
    "baselines",
    "calibrated",
    "dense_models",
    "entries",
    "images_for",
    "run",
    "show_rows",
    "trained_folds",
    "weights_of",
]

PICTURES = 4
"""How many images are drawn for every method."""


def baselines(base: nn.Module, shares: Sequence[float]) -> list[Candidate]:
    """What any method has to beat at these shares; says which of it the model cannot have."""
    return baselines_(base, shares, show.note)


def trained_folds(base: nn.Module, names: list[str]) -> list[Candidate]:
    """Models that were trained folded, on the images of the base."""
    return trained({name: renormalized(_folded(name, base), base) for name in names})


def dense_models(base: nn.Module, names: list[str]) -> list[Candidate]:
    """Other dense models on the images of the base, each made when its turn comes."""
    return smaller_models({name: functools.partial(_of_others, name, base) for name in names})


def weights_of(model: nn.Module) -> str:
    """The fingerprint of its weights, by which a resumed sweep knows them again."""
    return fingerprint(model.state_dict())


def images_for(
    base: nn.Module,
    source: AnySource,
    limit: int | None,
    batch_size: int,
    workers: int,
    labels: bool,
) -> Batches:
    """Gives the same images at every call, with labels or without."""
    read = batches_of if labels else photographs
    return functools.partial(read, base, source, limit, batch_size, workers)


def run(
    base: nn.Module,
    every: list[Candidate],
    batches: Batches,
    sizes: list[int],
    repeats: int,
    dtype: torch.dtype | None,
    runtime: Runtime,
    file: SweepFile,
) -> list[dict[str, Any]]:
    """Measure what is not in the file yet. All rows."""
    once = {candidate.key: candidate for candidate in every}.values()
    left = [candidate for candidate in once if candidate.key not in file.done]
    first: Any = batches()
    count = (len(first) + MORE) * len(left) if hasattr(first, "__len__") else None
    on = next(base.parameters()).device
    images = images_in(next(iter(first)))[:PICTURES].to(on) if left else None
    speeds: dict[str, Sequence[Speed]] = {}
    with show.bar(f"sweeping in {runtime}", count) as progress:
        for row, ours in sweep(
            base, left, batches, sizes=sizes, repeats=repeats, amp=dtype, runtime=runtime,
            progress=progress, skip=show.note,
        ):  # fmt: skip
            file.add(row, _picture(ours, images))
            speeds[f"{row.method} {row.flops:.2f}"] = row.speeds
    if (warning := busy(speeds)) is not None:
        show.note(warning)
    return file.rows


def show_rows(name: str, rows: list[dict[str, Any]], sizes: list[int], runtime: Runtime) -> None:
    """A table of accuracy where there are labels, one of fidelity, and one of speed for every batch
    size."""
    labels = any(_figure(row, "top1", 4) for row in rows)
    columns, cells = (COLUMNS, _cells(rows)) if labels else (COSTS, _costs(rows))
    show.table(f"{name}: {len(rows)} candidates, in {runtime}", columns, cells)
    known = [name for name in FIDELITY if any(_figure(row, name, 4) for row in rows)]
    if beside := [name for name in known if not (labels and name in PERCENT)]:
        headers = [HEADERS[name] for name in beside]
        show.table("Fidelity", [*COSTS[:2], *headers], _fidelity(rows, beside))
    for size in sizes:
        show.table(f"Speed, batch size {size}, in {runtime}", SPEED_COLUMNS, _speeds(rows, size))


def _other(name: str, base: nn.Module) -> nn.Module:
    on = next(base.parameters()).device
    return create_model(name, pretrained=True).to(on).eval()


def _of_others(name: str, base: nn.Module) -> nn.Module:
    """A model on the images of another."""
    return renormalized(_other(name, base), base)


def _folded(name: str, base: nn.Module) -> nn.Module:
    model = _other(name, base)
    if not folds(model):
        raise MethodError(f"--trained {name} is not folded: give it as --smaller-model")
    return model


def _picture(model: nn.Module, images: torch.Tensor | None) -> str | None:
    """The tokens of some images after the last block, as a web page holds pictures."""
    if images is None or not folds(model):
        return None
    traced = trace(model, images)
    if traced.grid is None:
        return None
    plain = [draw.plain(image) for image in images]
    drawn = [traced.draw(number) for number in range(len(images))]
    labels = ["image"] * len(plain) + [f"{counts} tokens" for counts in traced.counts[-1]]
    out = io.BytesIO()
    draw.row(plain + drawn, labels).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


COLUMNS = ("method", "FLOPs asked for", "FLOPs, of dense", "top-1", "95 %", "agrees", GFLOPS)

COSTS = ("method", "FLOPs asked for", "FLOPs, of dense", GFLOPS)
"""Of images without labels."""

FIDELITY = (
    "agreement",
    "cosine",
    "cosine_worst",
    "recall1",
    "recall10",
    "dense_cosine",
    "kl",
    "abs_rel",
    "iou",
)

SPEED_COLUMNS = ("method", "FLOPs asked for", "images/s", "x dense", "share of bound")

SPEEDS = (("images_per_second", 0), ("speedup", 2), ("share", 3))


def _candidate(row: dict[str, Any]) -> list[str]:
    """The first cells of every row: a method, and the FLOPs that it was asked for."""
    return [row["method"], f"{float(row['flops']):.2f}"]


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            *_candidate(row),
            _figure(row, "flops_share", 3),
            f"{float(row['top1']):.2%}",
            f"{float(row['top1_low']):.1%}-{float(row['top1_high']):.1%}",
            f"{float(row['agreement']):.2%}",
            f"{float(row['gflops']):.3f}",
        ]
        for row in rows
    ]


def _costs(rows: list[dict[str, Any]]) -> list[list[str]]:
    """What candidates cost."""
    return [
        [*_candidate(row), _figure(row, "flops_share", 3), f"{float(row['gflops']):.3f}"]
        for row in rows
    ]


def _fidelity(rows: list[dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    return [[*_candidate(row), *(_beside(row, name) for name in names)] for row in rows]


def _beside(row: dict[str, Any], name: str) -> str:
    """A figure of fidelity."""
    value = _figure(row, name, 4)
    return f"{float(row[name]):.2%}" if value and name in PERCENT else value


def _speeds(rows: list[dict[str, Any]], size: int) -> list[list[str]]:
    return [
        [
            *_candidate(row),
            *(_figure(row, f"{name}_b{size}", digits) for name, digits in SPEEDS),
        ]
        for row in rows
    ]


def _figure(row: dict[str, Any], name: str, digits: int) -> str:
    """Empty where there is none, as in the rows of an older sweep."""
    value = row.get(name)
    return "" if value in (None, "") else f"{float(value):.{digits}f}"
