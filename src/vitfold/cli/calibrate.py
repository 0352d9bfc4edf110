"""`vitfold calibrate`: heights for WardCut, from images."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.groups import grouped


@grouped
def calibrate(
    data: options.TrainingImages,
    model_options: options.ModelOptions,
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
    from vitfold.cli.images import shuffled_of
    from vitfold.cli.work.calibrate import calibrate_on
    from vitfold.folding.fold import fold_to_learn
    from vitfold.methods import WardCut, create_method

    values.directory_beside(output, model, model_options.plan)
    method = create_method(WardCut.name, {"flops": share, **values.parse(method_kwargs)})
    ours = fold_to_learn(model_options.image_model(model), method)
    batches = shuffled_of(ours, data.source, images, 1, seed, workers)
    calibrate_on(model, ours, batches, images, model_options.on, output)
