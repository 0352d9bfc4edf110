"""Models timed side by side, as `vitfold bench` shows it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vitfold.cli import options, show
from vitfold.cli.images import batches_of
from vitfold.cli.work.serving import all_served
from vitfold.data import AnySource
from vitfold.errors import DataError
from vitfold.exporting.runtime import Runtime
from vitfold.folding.calls import fold_of
from vitfold.folding.inputs import Inputs
from vitfold.saving.models import dataset_of
from vitfold.segment import Labels, SceneSource
from vitfold.segment.segmenter import MOST_CLASSES
from vitfold.tokens.modes import mixed
from vitfold.tools.baselines import DENSE, candidates, is_whole
from vitfold.tools.bench import Row, bench, timed_part, warnings
from vitfold.tools.measure import random_inputs
from vitfold.tools.removal import removed

COLUMNS = (
    "", "images/s", "quartiles", "GFLOPs (2 per MAC)", "FLOPs of dense", "peak MB", "x dense",
    "share of bound",
)  # fmt: skip


def scenes(data: options.Images) -> SceneSource:
    """Images for a segmenter, of which no labels are read."""
    return data.scenes(Labels(MOST_CLASSES))


def looks(ours: nn.Module) -> bool:
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


def measure(
    ours: nn.Module,
    sizes: list[int],
    repeats: int,
    warmup: int,
    runtime: Runtime,
    dtype: torch.dtype | None,
    pixels: Tensor | None,
) -> list[Row]:
    """The model beside what it is compared with in the runtime, at every batch size; with these
    images, or random ones."""
    whole = {name: timed_part(model) for name, model in candidates(ours, pixels).items()}
    served = all_served(whole, replace(runtime, images=pixels))
    device = next(whole[DENSE].parameters()).device
    rows: list[Row] = []
    total = len(sizes) * len(served) * (repeats + warmup)
    with show.bar("measuring", total) as progress, mixed(device, dtype):
        for size in sizes:
            images: Inputs = random_inputs(whole[DENSE], size)
            if pixels is not None:
                images = pixels[:size]
            rows += bench(
                whole,
                images,
                served=served,
                memory=runtime.in_torch,
                repeats=repeats,
                warmup=warmup,
                progress=progress,
            )
    return rows


def show_rows(
    name: str, ours: nn.Module, rows: list[Row], runtime: Runtime, images: Tensor | None
) -> None:
    """A table for every batch size, and what to mind."""
    record = fold_of(ours)
    show.console.print(f"{record.method}\ntokens removed per block: {removed(ours, images)}")
    for size in sorted({row.batch_size for row in rows}):
        cells = [_cells(row) for row in rows if row.batch_size == size]
        columns = COLUMNS if runtime.eager else (*COLUMNS, "x dense in eager torch")
        show.table(f"{name}, batch size {size}, in {runtime}", columns, cells)
    for warning in warnings(rows, share_of_trunk(ours), f"in {runtime} here"):
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
        "" if row.memory_mb is None else f"{row.memory_mb:.0f}",
        f"{row.speedup:.2f}",
        f"{row.share:.3f}",
        *([] if row.eager_speedup is None else [f"{row.eager_speedup:.2f}"]),
    ]
