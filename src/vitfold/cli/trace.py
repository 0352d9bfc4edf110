"""`vitfold trace`: what becomes of the tokens of some images."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.groups import grouped


@grouped
def trace(
    choice: options.Choice,
    model_options: options.ModelOptions,
    task: options.Task,
    model: options.ModelName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    stride: options.Stride = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the pictures.")
    ] = Path(),
) -> None:
    """Token counts of every block, and for every image two pictures: the groups after the last
    block (NAME-tokens.png) and after every block that changed them (NAME-blocks.png).

    Of a model that makes depths or masks also its map, dense beside folded (NAME-map.png).

    Of a segmenter also what it says of every pixel, dense and folded (NAME-classes.png), beside
    the truth where the image lies in images/ and its labels in annotations/.
    """
    from vitfold.cli.work import trace as work
    from vitfold.cli.work.fold import folded_by

    values.directory(output)
    ours = folded_by(model_options.model(model), model_options.plan, choice)
    if task.pixels:
        work.check_pixels(ours)
    work.trace_images(ours, images, model_options.on, task, stride, output)
