"""`vitfold sweep`: many folds of one model on the same images."""

import base64
import functools
import io
from typing import Annotated, Any

import torch
import typer
from torch import nn

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.images import batches_of
from vitfold.data import renormalized
from vitfold.errors import MethodError
from vitfold.folding.calls import folds
from vitfold.lab.candidate import candidates, smaller_inputs, smaller_models
from vitfold.lab.candidate import trained as trained_
from vitfold.lab.report.columns import GFLOPS
from vitfold.lab.sweep import sweep as sweep_
from vitfold.lab.sweep_file import SweepFile
from vitfold.lab.timing import busy
from vitfold.methods import ready
from vitfold.saving.models import create_model
from vitfold.tools import draw
from vitfold.tools.digest import fingerprint
from vitfold.tools.trace import trace

PICTURES = 4
"""How many images are drawn for every method."""


@grouped
def sweep(
    made: options.ModelOptions,
    data: options.Images,
    precision: options.Precision,
    model: options.ModelName = "digits",
    methods: Annotated[str, typer.Option(help="With commas between.")] = ",".join(ready()),
    flops: Annotated[
        str, typer.Option(help="Shares of the dense FLOPs: 0.9,0.6, or 0.9..0.4, or 0.9..0.4:0.05.")
    ] = "0.9..0.4",
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    smaller_input: Annotated[
        bool, typer.Option(help="The dense model on smaller images, too.")
    ] = True,
    smaller_model: Annotated[
        list[str], typer.Option(metavar="MODEL", help="Another dense model, too; may be repeated.")
    ] = [],  # noqa: B006
    trained: Annotated[
        list[str],
        typer.Option(metavar="DIR", help="A model that was trained folded, too; may be repeated."),
    ] = [],  # noqa: B006
    limit: options.Limit = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="For speed, one or more: 1,32.")
    ] = "1,32",
    val_batch_size: Annotated[int, typer.Option(min=1, help="For accuracy.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of timing that count.")] = 5,
    workers: options.Workers = 0,
    results_file: options.ResultsFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin the file anew.")] = False,
) -> None:
    """Accuracy, agreement, FLOPs and speed of every method over a range of FLOPs.

    Rows go to --results-file as they come; the same command goes on from those that are there.
    """
    shares, sizes = values.shares(flops), values.batch_sizes(batch_size)
    names = [values.method_name(name) for name in methods.split(",")]
    on, dtype = made.on, precision.dtype
    base = made.image_model(model)
    batches = functools.partial(batches_of, base, data.source, limit, val_batch_size, workers)
    entries = candidates(base, names, shares, values.parse(method_kwargs))
    entries += smaller_inputs(base, shares) if smaller_input else []
    entries += trained_({name: renormalized(_folded(name, on), base) for name in trained})
    others = {name: functools.partial(_of_others, name, base, on) for name in smaller_model}
    entries += smaller_models(others)
    about: dict[str, Any] = {
        "command": "sweep",
        "model": model,
        "arguments": values.arguments(made.model_kwargs, made.img_size),
        "weights": fingerprint(base.state_dict()),
        "data": [data.dataset, str(data.data_dir), data.split, data.class_map, limit],
        "batch_sizes": sizes,
        "device": str(on),
        "options": values.parse(method_kwargs),
        "amp": str(dtype),
    }
    file = SweepFile(results_file, about, overwrite)
    entries = list({candidate.key: candidate for candidate in entries}.values())
    left = [candidate for candidate in entries if candidate.key not in file.done]
    first: Any = batches()
    count = len(first) * len(left) if hasattr(first, "__len__") else None
    images = next(iter(first))[0][:PICTURES].to(on) if left else None
    speeds = {}
    with show.bar("sweeping", count) as progress:
        for row, ours in sweep_(
            base, left, batches, sizes=sizes, repeats=repeats, amp=dtype, progress=progress,
            skip=show.note,
        ):  # fmt: skip
            file.add(row, _picture(ours, images))
            speeds[f"{row.method} {row.flops:.2f}"] = row.speeds
    show.table(f"{model}: {len(file.rows)} candidates", COLUMNS, _cells(file.rows))
    for size in sizes:
        show.table(f"Speed, batch size {size}", SPEED_COLUMNS, _speeds(file.rows, size))
    if (warning := busy(speeds)) is not None:
        show.note(warning)
    if results_file:
        show.written(results_file)


def _other(name: str, on: torch.device) -> nn.Module:
    return create_model(name, pretrained=True).to(on).eval()


def _of_others(name: str, base: nn.Module, on: torch.device) -> nn.Module:
    """A model on the images of another."""
    return renormalized(_other(name, on), base)


def _folded(name: str, on: torch.device) -> nn.Module:
    model = _other(name, on)
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

SPEED_COLUMNS = ("method", "FLOPs asked for", "images/s", "x dense", "share of bound")

SPEEDS = (("images_per_second", 0), ("speedup", 2), ("share", 3))


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["method"],
            f"{float(row['flops']):.2f}",
            _figure(row, "flops_share", 3),
            f"{float(row['top1']):.2%}",
            f"{float(row['top1_low']):.1%}-{float(row['top1_high']):.1%}",
            f"{float(row['agreement']):.2%}",
            f"{float(row['gflops']):.3f}",
        ]
        for row in rows
    ]


def _speeds(rows: list[dict[str, Any]], size: int) -> list[list[str]]:
    return [
        [
            row["method"],
            f"{float(row['flops']):.2f}",
            *(_figure(row, f"{name}_b{size}", digits) for name, digits in SPEEDS),
        ]
        for row in rows
    ]


def _figure(row: dict[str, Any], name: str, digits: int) -> str:
    """Empty where there is none, as in the rows of an older sweep."""
    value = row.get(name)
    return "" if value in (None, "") else f"{float(value):.{digits}f}"
