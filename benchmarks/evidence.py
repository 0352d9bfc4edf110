"""What token reduction costs in accuracy: `python benchmarks/evidence.py MODEL --data-dir DIR`.

Folds one model in all the ways that docs/evidence.md speaks of, on the same labelled images, and
writes a table for every question to benchmarks/evidence-NAME.md. Differences between two folds are
paired: both saw the same images. What every fold said is kept in --output, so a run goes on where
it was stopped, and other questions can be asked of it.

    python benchmarks/evidence.py models/vit_cifar10_cpu_adamw --data-dir cifar10 --split test
    python benchmarks/evidence.py digits
    python benchmarks/evidence.py deit_tiny_imagenet/model.py:build \
        --data-dir imagenet-samples.tar --every 5
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from halves import called, halves
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from tables import markdown
from torch import Tensor, nn

import vitfold
from vitfold.cli import options, show, values
from vitfold.cli.images import batches_of, shuffled_of
from vitfold.cli.work import models
from vitfold.data import Source
from vitfold.errors import MethodError
from vitfold.folding.calls import folds
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.folding.inputs import Inputs
from vitfold.lab.analysis.sharpness import sharpness as sharpness_
from vitfold.lab.candidate import baselines, gigaflops
from vitfold.methods import Method
from vitfold.tokens.cues import CUES
from vitfold.tools import draw
from vitfold.tools.answers import logits
from vitfold.tools.intervals import CONFIDENT, interval
from vitfold.tools.measure import random_inputs
from vitfold.tools.validate import Batch, predict

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
SHARE = 0.6
METHODS = (
    vitfold.ToMe, vitfold.DFE, vitfold.LGTM, vitfold.Drop, vitfold.Ward,
    vitfold.PiToMe, vitfold.MCTF, vitfold.DiffRate,
)  # fmt: skip
OURS = (vitfold.Ward, vitfold.WardCut)
CALIBRATION = 512
"""How many training images WardCut takes its heights from."""
COLUMNS = (
    "fold",
    "GFLOPs (2 per MAC)",
    "top-1",
    "95 %",
    "against dense",
    "agrees with dense",
    "95 %",
)


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

    depth = find(model).depth
    without = [
        Fold(f"{one.method}, flops={one.flops}", one.make)
        for one in baselines(model, SHARES, show.note)
    ]
    return {
        "The methods over the range": [
            *(by(method(flops=share)) for method in METHODS for share in SHARES),
            *(cut(share) for share in SHARES),
            *without,
        ],
        f"Merging and dropping by every cue, at {SHARE} of the FLOPs": [
            by(method(flops=SHARE, cue=cue))
            for cue in CUES
            for method in (vitfold.ToMe, vitfold.Drop)
        ],
        f"How many blocks stay dense, at {SHARE} of the FLOPs": [
            by(vitfold.DFE(flops=SHARE, skip=skip)) for skip in range(depth // 2 + 1)
        ],
        "Proportional attention": [
            by(vitfold.ToMe(flops=SHARE, proportional=switch)) for switch in (True, False)
        ],
        "What Ward is made of": [
            by(method(flops=share, **options))
            for share in (0.6, 0.5)
            for method, options in (
                (vitfold.ToMe, {}),
                (vitfold.ToMe, {"cue": "x"}),
                (vitfold.ToMe, {"inflection": -0.5}),
                (vitfold.Ward, {}),
                (vitfold.Ward, {"inflection": -0.5}),
                (vitfold.Ward, {"inflection": -1.0}),
            )
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
) -> None:
    """Run what is missing, and write the tables."""
    dense = models.model(model, [], True, None, values.device(device))
    source = Source(dataset, data_dir, split)
    name = called(model)
    text = Answers(output / f"evidence-{name}.safetensors")
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
    named = {fold.name: fold for group in request.values() for fold in group}
    named = {"dense": Fold("dense", lambda: dense), **named}
    left = [fold for fold in named.values() if fold.name not in text.best]
    with show.bar("folding", len(left) * len(batches)) as progress:
        for fold in left:
            try:
                new = fold.make().eval()
            except MethodError as error:  # out of reach
                show.note(f"{fold.name}: {error}")
                continue
            result = predict(new, batches, progress=progress)
            text.add(fold.name, result.best[:, 0], result.labels)
    one = random_inputs(dense, 1)
    sample = torch.cat([images for images, _ in batches])
    sample = sample[:: max(1, len(sample) // CALIBRATION)]
    lines = [f"# {name}: {len(text.labels)} images", ""]

    def tell(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
        show.table(f"{name}: {title}", columns, rows)
        lines.extend([f"## {title}", "", *markdown(columns, rows), ""])

    # Finding the schedule of a fold takes seconds, and some stand in several tables.
    figures = {
        name: row(fold, text, one, sample) for name, fold in named.items() if name in text.best
    }
    for title, group in request.items():
        names = ["dense", *(fold.name for fold in group)]
        tell(title, COLUMNS, [figures[name] for name in names if name in figures])
    for ours in OURS:
        rivals = [method for method in (*METHODS, *OURS[1:]) if method is not ours]
        duels = [duel(ours, share, rival, text) for share in (0.6, 0.5) for rival in rivals]
        tell(f"{ours.__name__} against each", DUEL, duels)
    sure = margins(dense, batches)
    ways = (*METHODS, vitfold.WardCut)
    changes = [change(str(way(flops=SHARE)), text, sure) for way in ways]
    tell("Images whose prediction changes", CHANGES, changes)
    picture = Path("benchmarks") / f"evidence-{name}.png"
    surprises(dense, batches, text, sure).save(picture)
    lines += [f"![the changed images of which the dense model was surest]({picture.name})", ""]
    target = Path("benchmarks") / f"evidence-{name}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    if sharpness:
        tell("Sharpness", SHARP, list(sharp(dense, batches)))
    target.write_text("\n".join(lines), encoding="utf-8")
    show.written(target)


class Answers:
    """What every fold said of every image, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best: dict[str, Tensor] = load_file(path) if path.exists() else {}

    @property
    def labels(self) -> Tensor:
        """What is right."""
        return self.best["labels"]

    def add(self, name: str, best: Tensor, labels: Tensor) -> None:
        """One more fold, written before the next one is begun."""
        self.best |= {name: best.contiguous(), "labels": labels}
        self._write()

    def forget(self, *names: str) -> None:
        """What those folds said: they are made anew."""
        if gone := [name for name in names if self.best.pop(name, None) is not None]:
            show.console.print(f"said before, asked again: {', '.join(gone)}", markup=False)
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file(self.best, part)
        part.replace(self.path)

    def gain(self, ours: str, other: str, truth: str = "labels") -> tuple[float, float]:
        """By how much one fold is more often right than another, give or take: on the labels, or
        by what the dense model says."""
        a, b = (self.best[name] == self.best[truth] for name in (ours, other))
        images, won, lost = len(a), int((a & ~b).sum()), int((b & ~a).sum())
        gain = (won - lost) / images
        return gain, CONFIDENT * math.sqrt((won + lost) / images - gain**2) / math.sqrt(images)


def row(fold: Fold, text: Answers, one: Inputs, sample: Tensor) -> list[str]:
    """Figures of one fold; what it costs, on a sample where images cost what they like."""
    new = fold.make()
    ragged = any(record.method.ragged for record in folds(new))
    cost = gigaflops(new, sample if ragged else one)
    best, images = text.best[fold.name], len(text.labels)
    right = int((best == text.labels).sum())
    same = int((best == text.best["dense"]).sum())
    gain, spread = text.gain(fold.name, "dense")
    return [
        fold.name,
        f"{cost:.3f}",
        f"{right / images:.2%}",
        "{:.1%} to {:.1%}".format(*interval(right, images)),
        f"{gain * 100:+.2f} ± {spread * 100:.2f}",
        f"{same / images:.2%}",
        "{:.1%} to {:.1%}".format(*interval(same, images)),
    ]


DUEL = ("against", "top-1", "agreement with dense")


def duel(ours: Any, share: float, rival: Any, text: Answers) -> list[str]:
    """How much better a method of ours is than another at the same share, in points."""
    one, other = (str(method(flops=share)) for method in (ours, rival))
    if one not in text.best or other not in text.best:
        return [other, "", ""]
    gains = (text.gain(one, other, truth) for truth in ("labels", "dense"))
    return [other, *(f"{gain * 100:+.2f} ± {spread * 100:.2f}" for gain, spread in gains)]


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
    ours, dense, labels = text.best[name], text.best["dense"], text.labels
    changed = ours != dense
    lost, won = changed & (dense == labels), changed & (ours == labels)
    return [
        name,
        *(str(int(some.sum())) for some in (changed, lost, won, changed & ~lost & ~won)),
        *(f"{float(sure[some].median()):.2f}" for some in (changed, ~changed)),
    ]


def surprises(dense: nn.Module, batches: list[Batch], text: Answers, sure: Tensor) -> Image:
    """The images that ToMe changes although the dense model was sure: what ToMe and Ward make of
    them, and what each of the three says (right is in brackets)."""
    ways = [vitfold.ToMe(flops=SHARE), vitfold.Ward(flops=SHARE)]
    changed = (text.best[str(ways[0])] != text.best["dense"]).nonzero().flatten()
    chosen = changed[sure[changed].argsort(descending=True)[:7]]
    images = torch.cat([batch for batch, _ in batches])[chosen]
    pictures = [draw.plain(image) for image in images]
    words = [f"{text.best['dense'][i]} ({text.labels[i]})" for i in chosen.tolist()]
    for way in ways:
        traced = vitfold.trace(vitfold.fold(clone(dense), way), images)
        pictures += [traced.draw(number) for number in range(len(images))]
        words += [f"{way.name}: {text.best[str(way)][i]}" for i in chosen.tolist()]
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
