"""`vitfold validate`: how right a folded model is on labelled images."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, show
from vitfold.cli.groups import grouped
from vitfold.errors import DataError


@grouped
def validate(
    choice: options.Choice,
    model_options: options.ModelOptions,
    data: options.Images,
    task: options.Task,
    precision: options.Precision,
    runtime: options.Runtime,
    model: options.ModelName = "digits",
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="How near it stays to the dense model, in place of how right it is: no labels are "
            "needed. Without a head, as of embeddings, this is what there is.",
        ),
    ] = False,
    stride: options.Stride = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Of a segmenter, draw so many scenes, evenly spaced.")
    ] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="For the pictures.")] = Path(),
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 64,
    workers: options.Workers = 0,
    results_file: options.ResultsFile = None,
) -> None:
    """Top-1 and top-5 of the folded model, and how often it agrees with the dense one; of a
    segmenter, the mean intersection over union, by windows that slide over each image; of a model
    of embeddings, or with --fidelity, how near it stays to the dense one.

    Without data, the embedded model is validated on its held-out digits. In another --runtime the
    folded model answers there, the dense one in eager torch.
    """
    from vitfold.cli.work import validate as work
    from vitfold.cli.work.fold import folded_by
    from vitfold.tools.answers import classes_of_head

    dtype = precision.dtype
    where = runtime.on(model_options.on, precision)
    if pictures and not task.pixels:
        raise DataError(f"--pictures {pictures} are of a segmenter: give --task segment")
    if fidelity and task.pixels:
        raise DataError("--fidelity: of a segmenter, the report has what agrees with the dense one")
    ours = folded_by(task.model(model_options, model), model_options.plan, choice)
    source = task.source(data, ours)
    where = work.calibrated(where, ours, source, limit, workers)
    if isinstance(source, work.SceneSource):
        report = work.of_pixels(
            model, ours, source, limit, stride, workers, dtype, where, pictures, output
        )
    elif fidelity or not classes_of_head(ours):
        report = work.of_fidelity(model, ours, source, limit, batch_size, workers, dtype, where)
    else:
        report = work.of_images(model, ours, source, limit, batch_size, workers, dtype, where)
    show.results(results_file, "validate", model, ours, [where.tags | report])
