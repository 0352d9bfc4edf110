"""`vitfold freeze`: fixed numbers of tokens, taken from learned thresholds."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.groups import grouped


@grouped
def freeze(
    data: options.TrainingImages,
    model_options: options.ModelOptions,
    task: options.Task,
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Trained with LTMP, or calibrated with WardCut or FisherCut. Of a model of your "
            "own: FILE.py:function, and the directory by --plan.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The frozen model goes here.")],
    stride: options.Stride = None,
    val_split: Annotated[str, typer.Option(help="Both are measured on it.")] = "validation",
    images: Annotated[int, typer.Option(min=1, help="For the means, evenly spaced.")] = 512,
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 64,
    workers: options.Workers = 0,
) -> None:
    """Give every image the mean number of tokens of a model whose images keep numbers of their own.

    The frozen model compiles, exports and runs in batches like any other; the accuracy of both is
    shown.
    """
    from vitfold.cli.images import batches_of
    from vitfold.cli.work import freeze as work

    values.directory_beside(output, model, model_options.plan)
    learned = task.model(model_options, model)
    work.check_ragged(learned)
    held_out = task.source(replace(data, split=val_split), learned)
    if isinstance(held_out, work.SceneSource):
        compare = work.pixels(learned, held_out, limit, stride, workers)
    else:
        compare = work.images(learned, batches_of(learned, held_out, limit, batch_size, workers))
    source = task.source(data, learned)
    batches = batches_of(learned, source, images, batch_size, workers)
    frozen = work.frozen_on(learned, batches, model_options.on)
    compare(frozen)
    work.save_model(frozen, output)
    work.written(model, output)
