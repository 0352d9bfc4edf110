"""`vitfold bench`: how fast a fold is on this machine."""

from typing import Annotated, Any

import torch
import typer
from torch import nn

from vitfold import bench as bench_
from vitfold import results
from vitfold.cli import options, show
from vitfold.families import find
from vitfold.fold import folded
from vitfold.measure import random_inputs

COLUMNS = ("", "images/s", "quartiles", "GFLOPs", "peak MB", "x dense", "share of bound")


def bench(
    model: options.ModelName = "digits",
    method: options.MethodName = None,
    r: options.Reduction = None,
    flops: options.Share = None,
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    plan: options.PlanDirectory = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="One or more, as 1,8,32.")
    ] = "1,32",
    model_kwargs: options.ModelKwargs = [],  # noqa: B006
    img_size: options.ImageSize = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them.")] = 2,
    compile: Annotated[bool, typer.Option("--compile", help="Compile every candidate.")] = False,  # noqa: A002
    device: options.Device = "cpu",
    amp: options.Amp = False,
    amp_dtype: options.AmpDtype = "bfloat16",
    results_file: options.ResultsFile = None,
) -> None:
    """Dense model, textbook ToMe, free-slicing bound and folded model side by side.

    All share one set of weights and take turns, so that a drifting machine is fair to each. Speed
    does not depend on the weights, so they are random.
    """
    if results_file:
        results.check_results_file(results_file)
    sizes = options.batch_sizes(batch_size)
    on, dtype = options.device(device), options.amp(amp, amp_dtype)
    dense = options.model(model, model_kwargs, False, img_size, on)
    ours = options.folded_by(dense, plan, options.Choice(method, r, flops, method_kwargs))
    rows = _measure(bench_.candidates(ours), sizes, repeats, warmup, compile, dtype)
    _show(model, ours, rows)
    if results_file:
        about = {"command": "bench", "model": model, "method": folded(ours).method.to_json()}
        tags = {"model": model, "method": str(folded(ours).method)}
        results.write(results_file, [tags | row.to_json() for row in rows], about)
        show.written(results_file)


def _measure(
    models: dict[str, nn.Module],
    sizes: list[int],
    repeats: int,
    warmup: int,
    compiled: bool,
    dtype: torch.dtype | None,
) -> list[bench_.Row]:
    trunks: dict[str, nn.Module] = {name: find(model).trunk for name, model in models.items()}
    run: dict[str, Any] = {n: torch.compile(t) if compiled else t for n, t in trunks.items()}
    device = next(trunks[bench_.DENSE].parameters()).device
    rows: list[bench_.Row] = []
    total = len(sizes) * len(run) * (repeats + warmup)
    amp = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    with show.bar("measuring", total) as progress, amp:
        for size in sizes:
            images = random_inputs(trunks[bench_.DENSE], size)
            rows += bench_.bench(run, images, repeats=repeats, warmup=warmup, progress=progress)
    return rows


def _show(name: str, ours: nn.Module, rows: list[bench_.Row]) -> None:
    record = folded(ours)
    show.console.print(f"{record.method}\ntokens removed per block: {bench_.removed(ours)}")
    for size in sorted({row.batch_size for row in rows}):
        cells = [_cells(row) for row in rows if row.batch_size == size]
        show.table(f"{name}, batch size {size}", COLUMNS, cells)
    if (warning := bench_.warning(rows)) is not None:
        show.note(warning)


def _cells(row: bench_.Row) -> list[str]:
    return [
        row.name,
        f"{row.images_per_second:.1f}",
        f"{row.low:.1f}-{row.high:.1f}",
        f"{row.gflops:.2f}",
        f"{row.memory_mb:.0f}",
        f"{row.speedup:.2f}",
        f"{row.share:.3f}",
    ]
