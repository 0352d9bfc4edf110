"""`vitfold calibrate`: directions, heights, or numbers for every block, from images."""

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
    method: Annotated[
        str,
        typer.Option("--method", help="What is calibrated: wardcut, or one that takes --flops."),
    ] = "wardcut",
    cues: Annotated[
        str, typer.Option(help="x,k: what tokens may be compared by; the best is kept.")
    ] = "",
    place: Annotated[
        bool,
        typer.Option("--place", help="Of cuts: look first for where tokens leave."),
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="How many of them, at once.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Decides which.")] = 42,
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    workers: options.Workers = 0,
) -> None:
    """Find what a method takes from images, without training or labels, and save the model folded
    so.

    Of wardcut and fishercut, heights: every image then keeps its own number of tokens, as merging
    goes on until what is left is too far apart. Of other methods, how many tokens leave every
    block: as many as cost the share, where the model loses least by it. Of fisher and fishercut,
    first the directions in which the output notices tokens.
    """
    from vitfold.cli.images import shuffled_of
    from vitfold.cli.work.calibrate import calibrate_on
    from vitfold.folding.fold import fold_to_learn
    from vitfold.methods import create_method

    names = [cue.strip() for cue in cues.split(",") if cue.strip()]
    values.directory_beside(output, model, model_options.plan)
    chosen = create_method(method, {"flops": share, **values.parse(method_kwargs)})
    ours = fold_to_learn(model_options.image_model(model), chosen)
    batches = shuffled_of(ours, data.source, images, 1, seed, workers)
    calibrate_on(model, ours, batches, images, names, place, model_options.on, output)
