"""What token reduction costs in accuracy: `python benchmarks/evidence.py MODEL --data-dir DIR`.

Folds one model in all the ways that docs/evidence.md speaks of, on the same labelled images, and
writes a table for every question to benchmarks/evidence-NAME.md. Differences between two folds are
paired: both saw the same images. What every fold said is kept in --output, so a run goes on where
it was stopped, and other questions can be asked of it; Ctrl-C writes the tables of what is there.
Sharpness takes hours on a large model: --no-sharpness leaves it out.

    python benchmarks/evidence.py models/vit_cifar10_cpu_adamw --data-dir cifar10 --split test
    python benchmarks/evidence.py digits
    python benchmarks/evidence.py deit_tiny_imagenet/model.py:build \
        --data-dir imagenet-samples.tar --every 5 --batch-size 50 --no-sharpness --no-pictures
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from halves import called, halves
from judging import Judge, Kept, Numbers, geometric, paired
from PIL.Image import Image
from tables import HERE, markdown
from torch import Tensor, nn

import vitfold
from vitfold.cli import options, show, values
from vitfold.cli.images import batches_of, shuffled_of
from vitfold.cli.work import models
from vitfold.data import Source
from vitfold.errors import MethodError
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.lab.analysis.sharpness import sharpness as sharpness_
from vitfold.lab.candidate import baselines
from vitfold.methods import Method
from vitfold.tokens.cues import CUES
from vitfold.tools import draw
from vitfold.tools.answers import logits
from vitfold.tools.intervals import interval
from vitfold.tools.validate import Batch

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
SHARE = 0.6
LEVELS = (0.75, 0.6, 0.5)
"""Where dense starts and schedules are looked at: what helps at one may harm at another."""
METHODS = (
    vitfold.ToMe, vitfold.DFE, vitfold.LGTM, vitfold.Drop, vitfold.Ward,
    vitfold.PiToMe, vitfold.MCTF, vitfold.DiffRate, vitfold.EViT, vitfold.ToMeAround,
)  # fmt: skip
RAMPS = (-0.5, 0.5)
"""More of it early, and more of it late; without one the same number leaves every block."""
OURS = (vitfold.Ward, vitfold.WardCut)
CALIBRATION = 512
"""How many training images WardCut takes its heights from."""
COLUMNS = (
    "fold", "GFLOPs (2 per MAC)", "KL x 1000", "agrees with dense", "95 %", "top-1", "95 %",
    "against dense", "cosine",
)  # fmt: skip


@dataclass(frozen=True)
class Fold:
    """One way to make the model cheaper."""

    name: str
    make: Callable[[], nn.Module]


def questions(model: nn.Module, some: Tensor) -> dict[str, list[Fold]]:
    """The folds that answer each question.

    some: training images.
    """

    def by(method: Method) -> Fold:
        return Fold(str(method), lambda: vitfold.fold(clone(model), method))

    def cut(share: float) -> Fold:
        method = vitfold.WardCut(flops=share)
        return Fold(
            str(method), lambda: vitfold.calibrate(vitfold.fold(clone(model), method), some)
        )

    def evenly(method: str, share: float) -> Fold:
        return Fold(
            f"{method}, the same share of patches, flops={share}",
            lambda: geometric(model, method, share),
        )

    depth = find(model).depth
    without = [
        Fold(f"{one.method}, flops={one.flops}", one.make)
        for one in baselines(model, SHARES, show.note)
    ]
    return {
        "The methods over the range": [
            *without,
            *(by(method(flops=share)) for method in METHODS for share in SHARES),
            *(cut(share) for share in SHARES),
        ],
        f"Merging and dropping by every cue, at {SHARE} of the FLOPs": [
            by(method(flops=SHARE, cue=cue))
            for cue in CUES
            for method in (vitfold.ToMe, vitfold.Drop)
        ],
        "How many blocks of ToMe stay dense": [
            by(vitfold.ToMe(flops=share, skip=skip))
            for share in LEVELS
            for skip in range(depth // 2)
        ],
        "Where tokens leave": [
            fold
            for share in LEVELS
            for method in (vitfold.ToMe, vitfold.Ward)
            for fold in (
                by(method(flops=share)),
                *(by(method(flops=share, inflection=ramp)) for ramp in RAMPS),
                evenly(method.name, share),
            )
        ],
        "Proportional attention": [
            by(vitfold.ToMe(flops=share, proportional=switch))
            for share in LEVELS
            for switch in (True, False)
        ],
        "What Ward is made of": [
            by(method(flops=share, cue=cue))
            for share in (0.6, 0.5)
            for method, cue in itertools.product((vitfold.ToMe, vitfold.Ward), ("k", "x"))
        ],
    }


def main(
    model: options.ModelName,
    dataset: options.Dataset = "",
    data_dir: options.DataDirectory = None,
    split: options.Split = "validation",
    calibration: Annotated[str, typer.Option(help="What WardCut looks at.")] = "train",
    every: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Of one split: every so many-th image is for calibration, and the others judge.",
        ),
    ] = None,
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 250,
    device: options.Device = "cpu",
    output: Annotated[Path, typer.Option(help="For what every fold said.")] = Path("local"),
    sharpness: Annotated[bool, typer.Option(help="Of the minimum, too.")] = True,
    pictures: Annotated[bool, typer.Option(help="Of images whose prediction changes.")] = True,
) -> None:
    """Run what is missing, and write the tables."""
    dense = models.model(model, [], True, None, values.device(device))
    source = Source(dataset, data_dir, split)
    name = called(model)
    kept = Kept(output / f"evidence-{name}.safetensors")
    looked_at: Iterable[Batch]
    if every is None:
        batches = list(batches_of(dense, source, limit, batch_size, 0))
        trained = Source(dataset, data_dir, calibration)
        looked_at = shuffled_of(dense, trained, CALIBRATION, 1, 0, 0)
    else:
        looked_at, judges = halves(dense, source, every, limit, batch_size)
        batches = list(judges)
    request = questions(
        dense, torch.cat([images for images, _ in looked_at]).to(values.device(device))
    )
    groups = reversed(request.values())  # the short ones first
    folds_ = [Fold("dense", lambda: dense), *(fold for group in groups for fold in group)]
    judge = Judge(dense, batches)
    _measure(judge, folds_, kept)
    text = Answers(kept, judge.labels)
    lines = [f"# {name}: {len(text.labels)} images", ""]

    def tell(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
        show.table(f"{name}: {title}", columns, rows)
        lines.extend([f"## {title}", "", *markdown(columns, rows), ""])

    for title, group in request.items():
        names = ["dense", *(fold.name for fold in group)]
        tell(title, COLUMNS, [row(name, text) for name in names if name in kept])
    for ours in OURS:
        rivals = [method for method in (*METHODS, *OURS[1:]) if method is not ours]
        pairs = itertools.product((0.6, 0.5), rivals)
        duels = [found for share, rival in pairs if (found := duel(ours, share, rival, text))]
        if duels:
            tell(f"{ours.__name__} against each", DUEL, duels)
    sure = margins(dense, batches)
    ways = (*METHODS, vitfold.WardCut)
    known = (str(way(flops=SHARE)) for way in ways)
    changes = [change(fold, text, sure) for fold in known if fold in kept]
    tell("Images whose prediction changes", CHANGES, changes)
    picture = HERE / f"evidence-{name}.png"
    if pictures and (drawn := surprises(dense, batches, text, sure)):
        drawn.save(picture)
        lines += [f"![the changed images of which the dense model was surest]({picture.name})", ""]
    target = HERE / f"evidence-{name}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    if sharpness:
        tell("Sharpness", SHARP, list(sharp(dense, batches)))
    target.write_text("\n".join(lines), encoding="utf-8")
    show.written(target)


def _measure(judge: Judge, folds_: Iterable[Fold], kept: Kept) -> None:
    """What is missing, one fold after another; Ctrl-C leaves it at what is there by then."""
    left = [fold for fold in {fold.name: fold for fold in folds_}.values() if fold.name not in kept]
    stopping = contextlib.suppress(KeyboardInterrupt)
    with stopping, show.bar("folding", len(left) * len(judge.batches)) as progress:
        for fold in left:
            try:
                new = fold.make()
            except MethodError as error:  # out of reach
                show.note(f"{fold.name}: {error}")
                continue
            kept.add(fold.name, judge.measure(new, progress))


@dataclass(frozen=True)
class Answers:
    """What every fold said of every image, beside what is right."""

    kept: Kept
    labels: Tensor

    def of(self, name: str) -> Numbers:
        """The figures of a fold, image by image."""
        return self.kept[name]

    def best(self, name: str) -> Tensor:
        """The class that a fold gives every image."""
        return self.of(name)["best"].long()

    def gain(self, ours: str, other: str, figure: str = "right") -> tuple[float, float]:
        """By how much a figure of one fold is more than another's, give or take."""
        return paired(self.of(ours)[figure], self.of(other)[figure])

    def told(self, ours: str, other: str, figure: str, scale: int = 100) -> str:
        """The same, for a table."""
        gain, spread = self.gain(ours, other, figure)
        return f"{gain * scale:+.2f} ± {spread * scale:.2f}"


def row(name: str, text: Answers) -> list[str]:
    """Figures of one fold."""
    numbers, images = text.of(name), len(text.labels)
    right, same = (int(numbers[figure].sum()) for figure in ("right", "agreement"))
    return [
        name,
        f"{float(numbers['gflops']):.3f}",
        f"{1000 * float(numbers['kl'].mean()):.1f}",
        f"{same / images:.2%}",
        "{:.1%} to {:.1%}".format(*interval(same, images)),
        f"{right / images:.2%}",
        "{:.1%} to {:.1%}".format(*interval(right, images)),
        text.told(name, "dense", "right"),
        f"{float(numbers['cosine'].mean()):.4f}",
    ]


DUEL = ("against", "top-1", "agreement with dense", "KL x 1000")


def duel(ours: Any, share: float, rival: Any, text: Answers) -> list[str]:
    """What a method of ours has more than another at the same share: points, and divergence;
    nothing where one was not measured."""
    one, other = (str(method(flops=share)) for method in (ours, rival))
    if one not in text.kept or other not in text.kept:
        return []
    scales = {"right": 100, "agreement": 100, "kl": 1000}
    return [other, *(text.told(one, other, figure, scale) for figure, scale in scales.items())]


CHANGES = (
    "fold",
    "changed",
    "right to wrong",
    "wrong to right",
    "wrong to wrong",
    "median margin of the changed",
    "of the others",
)


def margins(dense: nn.Module, batches: list[Batch]) -> Tensor:
    """By how much the dense model prefers its first class to its second, in probability."""
    best = []
    with torch.inference_mode(), show.bar("margins", len(batches)) as progress:
        for images, _ in batches:
            best.append(logits(dense, images).softmax(1).topk(2, dim=1).values)
            progress()
    first, second = torch.cat(best).unbind(1)
    return first - second


def change(name: str, text: Answers, sure: Tensor) -> list[str]:
    """What becomes of the images on which a fold and the dense model differ."""
    ours, dense, labels = text.best(name), text.best("dense"), text.labels
    changed = ours != dense
    lost, won = changed & (dense == labels), changed & (ours == labels)
    return [
        name,
        *(str(int(some.sum())) for some in (changed, lost, won, changed & ~lost & ~won)),
        *(f"{float(sure[some].median()):.2f}" for some in (changed, ~changed)),
    ]


def surprises(dense: nn.Module, batches: list[Batch], text: Answers, sure: Tensor) -> Image | None:
    """The images that ToMe changes although the dense model was sure: what ToMe and Ward make of
    them, and what each of the three says (right is in brackets); None where it changes none."""
    ways = [vitfold.ToMe(flops=SHARE), vitfold.Ward(flops=SHARE)]
    dense_says = text.best("dense")
    changed = (text.best(str(ways[0])) != dense_says).nonzero().flatten()
    chosen = changed[sure[changed].argsort(descending=True)[:7]]
    if not len(chosen):
        return None
    images = torch.cat([batch for batch, _ in batches])[chosen]
    pictures = [draw.plain(image) for image in images]
    words = [f"{dense_says[i]} ({text.labels[i]})" for i in chosen.tolist()]
    for way in ways:
        traced = vitfold.trace(vitfold.fold(clone(dense), way), images)
        pictures += [traced.draw(number) for number in range(len(images))]
        words += [f"{way.name}: {text.best(str(way))[i]}" for i in chosen.tolist()]
    return draw.row(pictures, words)


SHARP = ("fold", "largest eigenvalue")
SHARP_IMAGES = 64


def sharp(dense: nn.Module, batches: list[Batch]) -> Iterator[list[str]]:
    """Of the dense model and of two folds, on some images of every class."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    every = max(len(labels) // SHARP_IMAGES, 1)
    some = [(images[::every][:SHARP_IMAGES], labels[::every][:SHARP_IMAGES])]
    ways = [None, *(vitfold.ToMe(flops=share) for share in (0.6, 0.4))]
    with show.bar("sharpness", None) as progress:
        for method in ways:
            model = clone(dense) if method is None else vitfold.fold(clone(dense), method)
            yield [
                "dense" if method is None else str(method),
                f"{sharpness_(model, some, progress=progress):.2f}",
            ]


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
