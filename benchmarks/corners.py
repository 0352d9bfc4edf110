"""Right, near and fast at once, where a model is served: `python benchmarks/corners.py MODEL`.

For every runtime, the dense model and its folds, in float32 and in eight bits. Every fifth image,
in sorted order, gives the ranges of eight bits and what Fisher is calibrated by; the others judge:
top-1, and how near the answers stay to those of the dense model in eager torch. Speed is beside the
dense model in the same runtime in float32, all candidates of a runtime in turn. Writes
`corners-NAME.md`, and the figures as JSON; rows of other runtimes in that file stay.

    python benchmarks/corners.py deit_tiny_imagenet/model.py:build \\
        --data-dir imagenet-samples.tar --runtime openvino
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from halves import called, halves
from speed import ratio
from tables import HERE, earlier, markdown, spread
from torch import Tensor, nn

import vitfold
from vitfold.cli import options, show
from vitfold.cli.work import models
from vitfold.data import Source
from vitfold.exporting.runtime import Runtime
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.methods import Base
from vitfold.tools import results
from vitfold.tools.measure import interleave, timed
from vitfold.tools.validate import Batch, Report, validate

FIFTH = 5
SIZES = (1, 8)
DENSE = "dense"
CALIBRATION = 128
"""How many images ranges are taken from."""

COLUMNS = (
    "runtime", "fold", "top-1", "same class as dense", "KL x 1000", "cosine of embeddings",
    "recall@1", *(f"x dense, batch {size}" for size in SIZES),
)  # fmt: skip


def folds(share: float) -> dict[str, Callable[[], Base]]:
    """What is set beside the dense model."""
    return {
        f"ToMe {share}": lambda: vitfold.ToMe(flops=share),
        f"LGTM {share}": lambda: vitfold.LGTM(flops=share, skip=3),
        f"Ward {share}": lambda: vitfold.Ward(flops=share),
    }


def candidates(
    dense: nn.Module, share: float, images: Tensor, plan: Path | None
) -> Iterator[tuple[str, nn.Module]]:
    """The dense model and its folds, one of them calibrated by images; the fold that was tuned,
    too."""
    yield DENSE, clone(dense)
    for name, method in folds(share).items():
        yield name, vitfold.fold(clone(dense), method())
    yield f"Fisher {share}, calibrated", fisher(dense, share, images)
    if plan is not None:
        tuned = vitfold.load(plan, clone(dense))
        yield f"tuned, {fold_of(tuned).method.name}", tuned


def fisher(dense: nn.Module, share: float, images: Tensor) -> nn.Module:
    """What `vitfold calibrate --method fisher` finds."""
    with warnings.catch_warnings(action="ignore"):  # it is calibrated at once
        model = vitfold.fold(clone(dense), "fisher", flops=share)
    with show.bar("calibrating Fisher", None) as progress:
        return vitfold.calibrate(model, images, progress=progress)


def precisions(name: str) -> list[bool]:
    """Whether in eight bits: first not, then so where the runtime has them."""
    return [False, True] if name in ("openvino", "onnxruntime") else [False]


def measure(
    dense: nn.Module,
    name: str,
    forms: list[tuple[str, nn.Module]],
    ranges: Tensor,
    judge: list[Batch],
    repeats: int,
) -> list[dict[str, Any]]:
    """All candidates of one runtime.

    ranges: images that the ranges of eight bits are taken from.
    """
    served: dict[tuple[str, bool], nn.Module] = {}
    reports: dict[tuple[str, bool], Report] = {}
    with show.bar(f"judging in {name}", len(forms) * len(precisions(name))) as progress:
        for int8 in precisions(name):
            runtime = Runtime(name, int8, ranges)
            for form, model in forms:
                served[form, int8] = runtime.answering(model)
                beside = runtime.dense(clone(dense))
                reports[form, int8] = validate(
                    served[form, int8], judge, dense=beside, device=ranges.device
                )
                progress()
    seconds = {}
    for size in SIZES:
        images = ranges[:size].contiguous()
        with show.bar(f"timing {size} at a time", (repeats + 3) * len(served)) as progress:
            runs = {str(key): timed(model, images) for key, model in served.items()}
            seconds[size] = interleave(runs, repeats, 3, progress)
    return [row(name, key, report, seconds) for key, report in reports.items()]


def row(
    name: str,
    key: tuple[str, bool],
    report: Report,
    seconds: Mapping[int, Mapping[str, list[float]]],
) -> dict[str, Any]:
    """The figures of one candidate."""
    form, int8 = key
    beside = str((DENSE, False))
    speeds = {f"x_b{n}": ratio(times[beside], times[str(key)]) for n, times in seconds.items()}
    return {"runtime": name, "int8": int8, "fold": form, **report.to_json(), **speeds}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for people to read, with 95 % intervals; of speed, quartiles."""
    lines = []
    for entry in rows:
        lines.append(
            [
                f"{entry['runtime']}{' INT8' if entry['int8'] else ''}",
                entry["fold"],
                _interval(entry, "top1", 100, "{:.1f}"),
                _interval(entry, "agreement", 100, "{:.1f}"),
                _interval(entry, "kl", 1000, "{:.1f}"),
                _interval(entry, "cosine", 1, "{:.4f}"),
                _interval(entry, "recall1", 100, "{:.1f}"),
                *(spread(entry[f"x_b{size}"]) for size in SIZES),
            ]
        )
    return markdown(COLUMNS, lines)


def _interval(entry: Mapping[str, Any], name: str, times: float, form: str) -> str:
    if f"{name}_low" not in entry:
        return ""
    mean, low, high = (form.format(times * entry[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{mean} ({low} to {high})"


def main(
    model: options.ModelName,
    data_dir: options.DataDirectory = None,
    split: options.Split = "validation",
    runtime: Annotated[list[str], typer.Option()] = ["openvino"],  # noqa: B006
    share: Annotated[float, typer.Option(help="Of the dense FLOPs.")] = 0.6,
    plan: Annotated[Path | None, typer.Option(help="Of `vitfold tune`.")] = None,
    limit: Annotated[int | None, typer.Option(help="Images that judge.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 25,
    output: Path = HERE,
) -> None:
    """Judge and time a model in runtimes, and write the table."""
    dense = models.model(model, [], True, None, torch.device("cpu")).eval()
    parts = halves(dense, Source("", data_dir, split), FIFTH, limit, 32)
    choose, judge = (list(part) for part in parts)
    images = torch.cat([images for images, _ in choose])
    forms = list(candidates(dense, share, images, plan))
    name = called(model)
    file = output / f"corners-{name}.json"
    rows = [entry for entry in earlier(file) if entry["runtime"] not in runtime]
    for each in runtime:
        rows += measure(dense, each, forms, images[:CALIBRATION], judge, repeats)
        results.write(file, rows, {"command": "benchmarks/corners.py"})
        head = f"# {name}: {sum(len(labels) for _, labels in judge)} images"
        file.with_suffix(".md").write_text("\n".join([head, "", *table(rows), ""]))
    show.written(file)


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
