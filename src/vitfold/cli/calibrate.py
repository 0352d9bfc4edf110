"""`vitfold calibrate`: heights for WardCut, from images."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.images import shuffled_of
from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold_to_learn
from vitfold.methods import WardCut, create_method
from vitfold.saving.models import save_model
from vitfold.tokens.modes import evaluating
from vitfold.tools.calibrate import calibrate as calibrate_
from vitfold.tools.measure import flops
from vitfold.tools.trace import trace


@grouped
def calibrate(
    data: options.TrainingImages,
    made: options.Made,
    model: options.ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folded model goes here.")],
    share: Annotated[
        float, typer.Option("--flops", help="Share of the dense FLOPs, on average over images.")
    ] = 0.6,
    images: Annotated[int, typer.Option(min=1, help="How many of them, at once.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Decides which.")] = 42,
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    workers: options.Workers = 0,
) -> None:
    """Find the heights of WardCut on images, without training, and save the model folded so.

    Every image then keeps its own number of tokens: merging goes on until what is left is too far
    apart.
    """
    values.directory_beside(output, model)
    base = made.image_model(model)
    method = create_method(WardCut.name, {"flops": share, **values.parse(method_kwargs)})
    ours = fold_to_learn(base, method)
    batches = shuffled_of(ours, data.source, images, 1, seed, workers)
    seen = torch.cat([pixels for pixels, _ in batches])[:images].to(made.on)
    with show.bar("calibrating", None) as progress:
        calibrate_(ours, seen, progress=progress)
    with torch.inference_mode(), evaluating(ours):
        reached = flops(find(ours).trunk, seen) / flops(find(clone(ours)).trunk, seen)
        counts = torch.tensor(trace(ours, seen).counts, dtype=torch.float64)
    points = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    rows = [
        [f"block {block}", *(f"{count:.0f}" for count in numbers.quantile(points))]
        for block, numbers in enumerate(counts)
    ]
    columns = ["tokens after", "fewest", "a quarter", "median", "three quarters", "most"]
    show.table(f"{len(seen)} images, {reached:.1%} of the dense FLOPs", columns, rows)
    save_model(ours, output)
    show.written(output)
