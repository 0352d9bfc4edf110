"""`vitfold bench`: how fast a fold is on this machine."""

from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.images import batches_of
from vitfold.data import AnySource
from vitfold.errors import DataError
from vitfold.folding.calls import fold_of
from vitfold.folding.inputs import Inputs
from vitfold.saving.models import dataset_of
from vitfold.segment import Labels
from vitfold.segment.segmenter import MOST_CLASSES
from vitfold.tokens.modes import mixed
from vitfold.tools.baselines import DENSE, candidates, is_whole
from vitfold.tools.bench import Row, timed_part, warnings
from vitfold.tools.bench import bench as bench_
from vitfold.tools.measure import random_inputs
from vitfold.tools.removal import removed

COLUMNS = (
    "", "images/s", "quartiles", "GFLOPs (2 per MAC)", "FLOPs of dense", "peak MB", "x dense",
    "share of bound",
)  # fmt: skip


@grouped
def bench(
    choice: options.Choice,
    data: options.Images,
    precision: options.Precision,
    model: options.ModelName = "digits",
    task: options.TaskName = options.TASKS[0],
    decoder: options.Decoder = "mask",
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Of a new segmenter.", show_default="150")
    ] = None,
    plan: options.PlanDirectory = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="One or more, as 1,8,32.")
    ] = "1,32",
    model_kwargs: options.ModelKwargs = [],  # noqa: B006 (typer copies defaults)
    img_size: options.ImageSize = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them.")] = 2,
    compile: Annotated[bool, typer.Option("--compile", help="Compile every candidate.")] = False,  # noqa: A002
    device: options.Device = "cpu",
    results_file: options.ResultsFile = None,
) -> None:
    """Dense model, textbook ToMe, free-slicing bound and folded model side by side.

    All share one set of weights and take turns, so that a drifting machine is fair to each. Where
    speed does not depend on weights and images, they are random; a method that keeps another number
    of tokens for every image takes a trained model, and images by --data-dir. A segmenter is timed
    with its decoder, on one window an image.
    """
    sizes = values.batch_sizes(batch_size)
    on, dtype = values.device(device), precision.dtype
    source: AnySource = data.source
    real = source.given
    if options.segments(task) and real:
        source = data.scenes(Labels(MOST_CLASSES))
    if options.segments(task):
        dense = options.segmenter(model, model_kwargs, img_size, decoder, num_classes, on)
    else:
        dense = options.model(model, model_kwargs, real, img_size, on)
    ours = options.folded_by(dense, plan, choice)
    images = sample(ours, source, max(sizes)).to(on) if real or _looks(ours) else None
    named = candidates(ours, images)
    rows = _measure(named, sizes, repeats, warmup, compile, dtype, images)
    _show(model, ours, rows, images)
    show.results(results_file, "bench", model, ours, [row.to_json() for row in rows])


def _looks(ours: nn.Module) -> bool:
    """Whether speed depends on images, and there are some without asking."""
    if not fold_of(ours).method.ragged:
        return False
    if not dataset_of(ours):
        raise DataError(f"{fold_of(ours).method} is as fast as its images let it: give --data-dir")
    return True


def sample(model: nn.Module, source: AnySource, count: int) -> Tensor:
    """Some images of a source, or of the embedded model's own, evenly spaced."""
    batches = batches_of(model, source, count, count, 0)
    images = torch.cat([pixels for pixels, _ in batches])[:count]
    if len(images) < count:
        raise DataError(f"{len(images)} images are fewer than a batch of {count}")
    return images


def _measure(
    models: dict[str, nn.Module],
    sizes: list[int],
    repeats: int,
    warmup: int,
    compiled: bool,
    dtype: torch.dtype | None,
    pixels: Tensor | None,
) -> list[Row]:
    whole = {name: timed_part(model) for name, model in models.items()}
    run: dict[str, Any] = {n: torch.compile(m) if compiled else m for n, m in whole.items()}
    device = next(whole[DENSE].parameters()).device
    rows: list[Row] = []
    total = len(sizes) * len(run) * (repeats + warmup)
    with show.bar("measuring", total) as progress, mixed(device, dtype):
        for size in sizes:
            images: Inputs = random_inputs(whole[DENSE], size)
            if pixels is not None:
                images = pixels[:size]
            rows += bench_(run, images, repeats=repeats, warmup=warmup, progress=progress)
    return rows


def _show(name: str, ours: nn.Module, rows: list[Row], images: Tensor | None) -> None:
    record = fold_of(ours)
    show.console.print(f"{record.method}\ntokens removed per block: {removed(ours, images)}")
    for size in sorted({row.batch_size for row in rows}):
        cells = [_cells(row) for row in rows if row.batch_size == size]
        show.table(f"{name}, batch size {size}", COLUMNS, cells)
    for warning in warnings(rows, share_of_trunk(ours)):
        show.note(warning)


def share_of_trunk(ours: nn.Module) -> float | None:
    """The share of the FLOPs that a fold was asked for, where that is of what is timed."""
    share: float | None = getattr(fold_of(ours).method, "flops", None)
    return None if is_whole(ours) else share


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.images_per_second:.1f}",
        f"{row.low:.1f}-{row.high:.1f}",
        f"{row.gflops:.2f}",
        f"{row.flops_share:.3f}",
        f"{row.memory_mb:.0f}",
        f"{row.speedup:.2f}",
        f"{row.share:.3f}",
    ]
