"""`vitfold sweep`: many folds of one model on the same images."""

from typing import Annotated

import typer

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.cli.names import READY


@grouped
def sweep(
    model_options: options.ModelOptions,
    data: options.Images,
    precision: options.Precision,
    runtime: options.Runtime,
    model: options.ModelName = "digits",
    methods: Annotated[
        str,
        typer.Option(help="With commas between, or all.", show_default=f"all: {', '.join(READY)}"),
    ] = "all",
    flops: Annotated[
        str, typer.Option(help="Shares of the dense FLOPs: 0.9,0.6, or 0.9..0.4, or 0.9..0.4:0.05.")
    ] = "0.9..0.4",
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    baselines: Annotated[
        bool,
        typer.Option(
            help="What any method has to beat at the same FLOPs, too: dropping tokens at random, "
            "and the dense model on smaller images."
        ),
    ] = True,
    smaller_model: Annotated[
        list[str], typer.Option(metavar="MODEL", help="Another dense model, too; may be repeated.")
    ] = [],  # noqa: B006
    trained: Annotated[
        list[str],
        typer.Option(metavar="DIR", help="A model that was trained folded, too; may be repeated."),
    ] = [],  # noqa: B006
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="How near each stays to the dense model, without labels. Without a head, as of "
            "embeddings, this is what there is.",
        ),
    ] = False,
    limit: options.Limit = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="For speed, one or more: 1,32.")
    ] = "1,32",
    val_batch_size: Annotated[int, typer.Option(min=1, help="For accuracy.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of timing that count.")] = 5,
    workers: options.Workers = 0,
    results_file: options.ResultsFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin the file anew.")] = False,
) -> None:
    """Accuracy, fidelity to the dense model, FLOPs and speed of every method over a range of FLOPs.

    Rows go to --results-file as they come; the same command goes on from those that are there. In
    another --runtime every candidate answers there and is timed there, beside the dense model;
    answers are compared with those of the dense model in eager torch.
    """
    from vitfold.cli.work import sweep as work
    from vitfold.tools.answers import classes_of_head

    shares, sizes = values.shares(flops), values.batch_sizes(batch_size)
    chosen = READY if methods == "all" else methods.split(",")
    names = [values.method_name(name) for name in chosen]
    kwargs, dtype = values.parse(method_kwargs), precision.dtype
    where = runtime.on(model_options.on, precision)
    base = model_options.image_model(model)
    entries = work.entries(base, names, shares, kwargs)
    entries += work.baselines(base, shares) if baselines else []
    entries += work.trained_folds(base, trained)
    entries += work.dense_models(base, smaller_model)
    labels = not fidelity and bool(classes_of_head(base))
    images = [data.dataset, str(data.data_dir), data.split, data.class_map, limit]
    about = {
        "command": "sweep",
        "model": model,
        "arguments": values.arguments(model_options.model_kwargs, model_options.img_size),
        "weights": work.weights_of(base),
        "data": images if labels else [*images, "without labels"],
        "batch_sizes": sizes,
        "device": str(model_options.on),
        "options": kwargs,
        "amp": str(dtype),
        **where.tags,
    }
    batches = work.images_for(base, data.source, limit, val_batch_size, workers, labels)
    file = work.SweepFile(results_file, about, overwrite)
    where = work.calibrated(where, base, data.source, limit, workers)
    rows = work.run(base, entries, batches, sizes, repeats, dtype, where, file)
    work.show_rows(model, rows, sizes, where)
    if results_file:
        show.written(results_file)
