"""`vitfold validate`: accuracy on labelled images."""

from collections.abc import Iterable, Sized
from typing import Annotated

import torch
import typer
from torch import nn

from vitfold import results
from vitfold.cli import options, show
from vitfold.data import Source, labelled, loader, streams
from vitfold.errors import DataError
from vitfold.fold import clone, folded
from vitfold.validate import Batch, Report, limited
from vitfold.validate import validate as validate_


def validate(
    model: options.ModelName = "digits",
    dataset: options.Dataset = "",
    data_dir: options.DataDirectory = None,
    split: options.Split = "validation",
    class_map: options.ClassMap = "",
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 64,
    workers: options.Workers = 0,
    method: options.MethodName = None,
    r: options.Reduction = None,
    flops: options.Share = None,
    method_kwargs: options.MethodKwargs = [],  # noqa: B006 (typer copies defaults)
    plan: options.PlanDirectory = None,
    model_kwargs: options.ModelKwargs = [],  # noqa: B006
    pretrained: options.Pretrained = True,
    img_size: options.ImageSize = None,
    device: options.Device = "cpu",
    amp: options.Amp = False,
    amp_dtype: options.AmpDtype = "bfloat16",
    results_file: options.ResultsFile = None,
) -> None:
    """Top-1 and top-5 of the folded model, and how often it agrees with the dense one.

    Without data, the embedded model is validated on its held-out digits.
    """
    if results_file:
        results.check_results_file(results_file)
    on, dtype = options.device(device), options.amp(amp, amp_dtype)
    base = options.model(model, model_kwargs, pretrained, img_size, on)
    ours = options.folded_by(base, plan, options.Choice(method, r, flops, method_kwargs))
    source = Source(dataset, data_dir, split, class_map)
    batches = batches_of(model, ours, source, limit, batch_size, workers)
    count = len(batches) if isinstance(batches, Sized) else None
    with show.bar("validating", count) as progress:
        report = validate_(ours, clone(ours), batches, device=on, amp=dtype, progress=progress)
    _show(model, ours, report)
    if results_file:
        about = {"command": "validate", "model": model, "method": folded(ours).method.to_json()}
        tags = {"model": model, "method": str(folded(ours).method)}
        results.write(results_file, [tags | report.to_json()], about)
        show.written(results_file)


def batches_of(
    name: str, model: nn.Module, source: Source, limit: int | None, batch_size: int, workers: int
) -> Iterable[Batch]:
    """Labelled images, at most `limit`: the source's, or the embedded model's own."""
    if source.dataset or source.root:
        dataset = labelled(model, source, limit)
        batches: Iterable[Batch] = loader(dataset, batch_size, workers)
        return limited(batches, limit) if streams(dataset) else batches
    if name != "digits":
        raise DataError("no data: give --data-dir FOLDER (or tar) or --dataset NAME")
    from vitfold.digits import load_split

    parts = (torch.split(part[:limit], batch_size) for part in load_split("test"))
    return list(zip(*parts, strict=True))


def _show(name: str, model: nn.Module, report: Report) -> None:
    rows = [
        ["images", str(report.images)],
        ["top-1", f"{report.top1:.2%}"],
        ["95 % interval", f"{report.top1_low:.2%} to {report.top1_high:.2%}"],
        ["top-5", f"{report.top5:.2%}"],
        ["dense top-1", f"{report.dense_top1:.2%}"],
        ["agrees with dense", f"{report.agreement:.2%}"],
        ["images/s", f"{report.images_per_second:.1f}"],
    ]
    show.table(f"{name}, {folded(model).method}", ["", "folded"], rows)
