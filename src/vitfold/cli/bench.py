"""`vitfold bench`: how fast a fold is on this machine."""

from typing import Annotated

import typer

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped


@grouped
def bench(
    choice: options.Choice,
    data: options.Images,
    precision: options.Precision,
    runtime: options.Runtime,
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
    compile: Annotated[bool, typer.Option("--compile", help="As --runtime compile.")] = False,  # noqa: A002
    device: options.Device = "cpu",
    results_file: options.ResultsFile = None,
) -> None:
    """Dense model, textbook ToMe, free-slicing bound and folded model side by side.

    All share one set of weights and take turns, so that a drifting machine is fair to each. Where
    speed does not depend on weights and images, they are random; a method that keeps another number
    of tokens for every image takes a trained model, and images by --data-dir. A segmenter is timed
    with its decoder, on one window an image. In another --runtime all candidates run there, and
    the dense model in eager torch beside them.
    """
    from vitfold.cli.work import bench as work
    from vitfold.cli.work import models
    from vitfold.cli.work.fold import folded_by

    sizes = values.batch_sizes(batch_size)
    on, dtype = values.device(device), precision.dtype
    where = (runtime.compiled() if compile else runtime).on(on, precision)
    real = data.source.is_set
    source = work.scenes(data) if options.segments(task) and real else data.source
    if options.segments(task):
        dense = models.segmenter(model, model_kwargs, img_size, decoder, num_classes, on)
    else:
        dense = models.model(model, model_kwargs, real, img_size, on)
    ours = folded_by(models.planned(dense, plan), plan, choice)
    looks = real or work.looks(ours)
    images = work.sample(ours, source, max(sizes)).to(on) if looks else None
    rows = work.measure(ours, sizes, repeats, warmup, where, dtype, images)
    work.show_rows(model, ours, rows, where, images)
    tagged = [where.tags | row.to_json() for row in rows]
    show.results(results_file, "bench", model, ours, tagged)
