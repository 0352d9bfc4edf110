"""Calibrating a model on images, as `vitfold calibrate` shows it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vitfold.cli import show
from vitfold.cli.work.models import written
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.saving.models import save_model
from vitfold.tokens.modes import evaluating
from vitfold.tools.calibrate import calibrate, passes
from vitfold.tools.measure import flops
from vitfold.tools.trace import trace
from vitfold.tools.validate import Batch


def calibrate_on(
    name: str,
    model: nn.Module,
    batches: Iterable[Batch],
    count: int,
    cues: Sequence[str],
    place: bool,
    on: torch.device,
    output: Path,
) -> None:
    """Calibrate on the first `count` images, show what it comes to and save the model."""
    images = torch.cat([pixels for pixels, _ in batches])[:count].to(on)
    most = passes(fold_of(model).method, find(model).depth, len(cues), place)
    with show.bar("calibrating", most) as progress:
        calibrate(model, images, cues=cues, place=place, progress=progress)
    _show(model, images)
    save_model(model, output)
    written(name, output)


def _show(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode(), evaluating(model):
        share = flops(find(model).trunk, images) / flops(find(clone(model)).trunk, images)
        counts = torch.tensor(trace(model, images).counts, dtype=torch.float64)
    points = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    rows = [
        [f"block {block}", *(f"{count:.0f}" for count in numbers.quantile(points))]
        for block, numbers in enumerate(counts)
    ]
    columns = ["tokens after", "fewest", "a quarter", "median", "three quarters", "most"]
    show.table(f"{len(images)} images, {share:.1%} of the dense FLOPs", columns, rows)
