"""Folding a segmenter: `python benchmarks/camvid.py --data-dir camvid`.

Trains a small segmenter on CamVid from the blocks of the CIFAR-10 reference model, folds its
encoder by every method, with and without training, and sets mean intersection over union, cost and
speed beside each other: benchmarks/camvid.md, and pictures. What was trained stays in --output, and
a run goes on where it was stopped.

    python benchmarks/camvid.py --data-dir camvid
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from PIL import Image
from tables import HERE, markdown
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.transforms.v2.functional import to_pil_image
from trainings import minutes, trained

import vitfold
from vitfold.cli import options, show, values
from vitfold.data import evenly, labelled, untouched
from vitfold.folding.calls import folds
from vitfold.folding.fold import clone
from vitfold.saving.models import create_model
from vitfold.segment import Labels, SceneSource
from vitfold.segment.metrics import pixels
from vitfold.segment.pictures import compare
from vitfold.tools.answers import IGNORED
from vitfold.tools.baselines import bound
from vitfold.tools.measure import Throughput, interleave, timed

ENCODER = "models/vit_cifar10_cpu_adamw"
CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
LABELS = Labels(len(CLASSES), ignored=11)
DENSE = [
    "--model-kwargs", "patch_size=16", "--img-size", "256", "--num-classes", str(len(CLASSES)),
    "-b", "16", "--epochs", "60", "--lr", "1e-3", "--warmup-epochs", "3", "--drop-path", "0.1",
]  # fmt: skip
MORE = ["-b", "16", "--epochs", "15", "--lr", "1e-4", "--distill", "soft"]
TRAINED = {
    "LTMP": ["--method", "ltmp", "-b", "16", "--epochs", "10"],
    "PruneMerge": ["--method", "prune-merge", "--method-kwargs", "iterations=46", *MORE],
}
FREE = (vitfold.ToMe, vitfold.DFE, vitfold.LGTM, vitfold.Drop, vitfold.Ward)
COLUMNS = (
    "fold", "FLOPs asked", "GFLOPs (2 per MAC)", "mIoU", "95 %", "against dense",
    "agrees with dense", "images/s", "x dense", "share of bound", "minutes of training",
)  # fmt: skip
SEED, DRAWS = 0, 2000


def main(
    data_dir: Annotated[Path, typer.Option(help="Holds train.tar and val.tar.")],
    output: Annotated[Path, typer.Option(help="For what is trained.")] = Path("local"),
    shares: Annotated[str, typer.Option(help="Of the FLOPs of the encoder.")] = "0.7,0.5",
    limit: options.Limit = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of timing.")] = 7,
) -> None:
    """Train what is missing, measure, and write the table and the pictures."""
    source = SceneSource(data_dir, "val", LABELS)
    every = dict(candidates(output, data_dir, values.shares(shares)))
    counts = {name: confusions(each.model, source, limit) for name, each in every.items()}
    dense = every["dense"].model
    windows = torch.stack([image for image, _ in evenly(labelled(dense, source), 8)])
    rates = speeds({name: each.model for name, each in every.items()}, windows, repeats)
    rows = [row(name, every[name], counts, windows, rates[name]) for name in every]
    scenes = len(counts["dense"][1])
    lines = [f"# {ENCODER} on CamVid: {scenes} images", "", *markdown(COLUMNS, rows), ""]
    lines += ["## By class", "", *markdown(("class", *every), by_class(counts)), ""]
    picture = HERE / "camvid.png"
    draw(dense, source, picture)
    lines += [f"![image, truth, dense, Ward at 0.5, where they differ]({picture.name})", ""]
    show.table("CamVid", COLUMNS, rows)
    target = HERE / "camvid.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    show.written(target)


class Candidate(NamedTuple):
    """A row of the table: the share that was asked for, and the minutes of training."""

    share: float
    model: nn.Module
    minutes: str = ""


def candidates(
    output: Path, data: Path, shares: Sequence[float]
) -> Iterator[tuple[str, Candidate]]:
    """The dense model, as it is and trained as much longer as folded ones are; all folds."""
    start = str(train(output / "camvid-dense", ENCODER, DENSE, data))
    dense = create_model(start).eval()
    yield "dense", Candidate(1.0, dense)
    longer = train(output / "camvid-dense-more", start, MORE, data)
    yield "dense, longer", Candidate(1.0, create_model(str(longer)).eval(), minutes(longer.parent))
    for share in shares:
        for method in FREE:
            way = method(flops=share)
            yield str(way), Candidate(share, vitfold.fold(clone(dense), way), "0")
        for name, inputs in TRAINED.items():
            place = output / f"camvid-{name.lower()}-{share}"
            fresh = train(place, start, [*inputs, "--flops", str(share)], data)
            model = create_model(str(fresh)).eval()
            yield f"{name}, {share}", Candidate(share, model, minutes(place))


def row(
    name: str,
    each: Candidate,
    counts: dict[str, tuple[Tensor, list[Tensor]]],
    windows: Tensor,
    rates: Sequence[str],
) -> list[str]:
    """Figures of one fold."""
    (ours, text), (dense, theirs) = counts[name], counts["dense"]
    gflops = vitfold.flops(each.model, windows) / len(windows) / 1e9
    return [
        name,
        f"{each.share:.2f}",
        f"{gflops:.2f}",
        f"{miou(ours.sum(0)):.2%}",
        *intervals(ours, dense),
        f"{same(text, theirs):.2%}",
        *rates,
        each.minutes,
    ]


def train(place: Path, model: str, inputs: Sequence[str], data: Path) -> Path:
    """What a training on these scenes makes."""
    scenes = ["--task", "segment", "--data-dir", data, "--val-split", "val"]
    settings = ["--ignore-label", "11", "--checkpoint-every", "200"]
    return trained(place, model, [*inputs, *scenes, *settings])


def confusions(
    model: nn.Module, source: SceneSource, limit: int | None
) -> tuple[Tensor, list[Tensor]]:
    """`[images, classes, classes]`: pixels by what is so and what is said; and what is said."""
    tables, text = [], []
    with torch.inference_mode():
        for image, labels in evenly(untouched(model, source), limit):
            answer = pixels(model, image, (labels.shape[0], labels.shape[1]), None)
            tables.append(
                multiclass_confusion_matrix(
                    answer, labels, num_classes=len(CLASSES), ignore_index=IGNORED
                )
            )
            text.append(answer)
    return torch.stack(tables).double(), text


def ious(table: Tensor) -> Tensor:
    """`[..., classes]`, from `[..., classes, classes]`."""
    both = table.diagonal(dim1=-2, dim2=-1)
    return both / (table.sum(-1) + table.sum(-2) - both)


def miou(table: Tensor) -> float:
    """The mean over classes that occur."""
    return float(ious(table).nanmean(-1))


def intervals(ours: Tensor, dense: Tensor) -> list[str]:
    """95 % of what other draws of images would give: of the figure, and of its gain over dense."""
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.randint(len(ours), (DRAWS, len(ours)), generator=generator)
    weights = torch.zeros(DRAWS, len(ours), dtype=torch.float64)
    weights.scatter_add_(1, draws, torch.ones_like(weights))
    each, theirs = (
        ious(torch.einsum("di,ijk->djk", weights, t)).nanmean(-1) for t in (ours, dense)
    )
    points = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = each.quantile(points).tolist()
    worst, best = (each - theirs).quantile(points).tolist()
    gain = miou(ours.sum(0)) - miou(dense.sum(0))
    return [
        f"{low:.1%} to {high:.1%}",
        f"{gain * 100:+.2f} ({worst * 100:+.2f} to {best * 100:+.2f})",
    ]


def same(ours: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    """The share of pixels of one class in both."""
    hits = sum(int((a == b).sum()) for a, b in zip(ours, dense, strict=True))
    return hits / sum(a.numel() for a in ours)


def speeds(
    models: dict[str, nn.Module], windows: Tensor, repeats: int
) -> dict[str, tuple[str, str, str]]:
    """Images per second, in turns; as a share of the dense model's, and of free slicing's."""
    bounds = {f"bound of {n}": bound(m, windows).eval() for n, m in models.items() if folds(m)}
    every = {**models, **bounds}
    seconds = interleave({n: timed(m, windows) for n, m in every.items()}, repeats, 1, lambda: None)
    rates = {name: Throughput.of(len(windows), times).median for name, times in seconds.items()}
    return {
        name: (
            f"{rates[name]:.1f}",
            f"{rates[name] / rates['dense']:.2f}",
            f"{rates[name] / rates[f'bound of {name}']:.2f}" if f"bound of {name}" in rates else "",
        )
        for name in models
    }


def by_class(counts: dict[str, tuple[Tensor, list[Tensor]]]) -> list[list[str]]:
    """The intersection over union of every class."""
    every = [ious(tables.sum(0)) for tables, _ in counts.values()]
    return [
        [name, *(f"{float(each[number]):.1%}" for each in every)]
        for number, name in enumerate(CLASSES)
    ]


def draw(dense: nn.Module, source: SceneSource, path: Path, number: int = 3) -> None:
    """Some scenes as the dense model sees them, and as it does with half of the FLOPs."""
    ward = vitfold.fold(clone(dense), "ward", flops=0.5)
    rows = [
        compare(ward, to_pil_image(raw), source.whole(ward), labels)
        for raw, labels in evenly(source.open(), number)
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (0, place * row.height))
    sheet.reduce(2).save(path)


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
