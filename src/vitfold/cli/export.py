"""`vitfold export`: a model for the runtime that serves it."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options
from vitfold.cli.groups import grouped
from vitfold.cli.names import TARGETS


@grouped
def export(
    choice: options.Choice,
    model_options: options.ModelOptions,
    data: options.Images,
    model: options.ModelName,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new directory, or that of an earlier export.")
    ],
    target: Annotated[str, typer.Option(help=f"{', '.join(TARGETS)}.")] = "onnx",
    dense: Annotated[bool, typer.Option("--dense", help="The model without a fold.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="In eight bits, with ranges from images of --data-dir.")
    ] = False,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels", help="The images of --data-dir are labelled: how right it is, too."
        ),
    ] = False,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            help="With openvino: the program takes pictures in 8 bits, [B, H, W, 3], of any size.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "-b", min=1, help="Images at a time.", show_default="any"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only N images, evenly spaced.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that are timed.")] = 10,
    workers: options.Workers = 0,
    results_file: options.ResultsFile = None,
) -> None:
    """Write a model, folded or --dense, for a runtime: verified there against eager torch, also on
    images in which tokens are alike, and timed beside the dense model in that runtime.

    With --data-dir (any folder or tar of pictures) it is told how near it stays to the dense model,
    and with --labels (folders of classes) how right it is. Beside the model lie
    preprocessor_config.json and report.json.
    """
    from vitfold.cli.work import export as work

    work.refuse_place(output, target, int8, preprocess)
    made = work.chosen(model_options.model(model), model_options.plan, choice, dense)
    some = work.sample(made, data.source, limit, workers, int8, labels)
    report = work.written(made, output, target, some, batch_size, int8, preprocess, repeats)
    work.show_report(model, report)
    work.results(results_file, model, report)
