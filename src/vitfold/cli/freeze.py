"""`vitfold freeze`: fixed numbers of tokens, taken from learned thresholds."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vitfold import freeze as freeze_
from vitfold.calls import folded
from vitfold.cli import options, show
from vitfold.cli.groups import grouped
from vitfold.cli.images import batches_of
from vitfold.errors import DataError
from vitfold.fold import clone
from vitfold.freeze import check_ragged
from vitfold.models import save_model
from vitfold.validate import predict, score


@grouped
def freeze(
    data: options.TrainingImages,
    model: Annotated[
        str, typer.Argument(metavar="DIR", help="Trained with LTMP, or calibrated with WardCut.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The frozen model goes here.")],
    val_split: Annotated[str, typer.Option(help="Both are measured on it.")] = "validation",
    images: Annotated[int, typer.Option(min=1, help="For the means, evenly spaced.")] = 512,
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 64,
    workers: options.Workers = 0,
    device: options.Device = "cpu",
) -> None:
    """Give every image the mean number of tokens of a model whose images keep numbers of their own.

    The frozen model compiles, exports and runs in batches like any other; the accuracy of both is
    shown.
    """
    if output.resolve() == Path(model).resolve():
        raise DataError(f"--output {output} is the model, which learned: give another directory")
    options.directory(output)
    made = options.Made(device=device)
    ours, on = made.image_model(model), made.on
    check_ragged(ours)
    seen = batches_of(ours, data.source, images, batch_size, workers, own="train")
    frozen = freeze_(copy.deepcopy(ours), (pixels.to(on) for pixels, _ in seen))
    held_out = replace(data, split=val_split).source
    batches = batches_of(ours, held_out, limit, batch_size, workers)
    said = {}
    for name, candidate in (("dense", clone(ours)), ("learned", ours), ("frozen", frozen)):
        with show.bar(name, None) as progress:
            said[name] = predict(candidate, batches, device=on, progress=progress)
    rows = []
    for name, predictions in said.items():
        report = score(predictions, said["dense"])
        span = f"{report.top1_low:.2%} to {report.top1_high:.2%}"
        rows.append([name, f"{report.top1:.2%}", span, f"{report.agreement:.2%}"])
    show.table(str(folded(frozen).method), ["", "top-1", "95 %", "agrees with dense"], rows)
    save_model(frozen, output)
    show.written(output)
