"""What learning is worth: `python benchmarks/learned.py MODEL --data-dir D`.

Trains, by `vitfold train`: LTMP, merging alone and dropping alone, an epoch for every share of the
FLOPs; for a third of an epoch with distillation, Prune and Merge (its matrices alone, and all of
it), EViT, DynamicViT, A-ViT, and as controls ToMe, Ward and the dense model; and some of these ten
times as long. Sets them beside the methods that need no training, on the same images:
benchmarks/learned-NAME.md, others-NAME.md and longer-NAME.md. What was trained stays in --output,
and a run goes on where it was stopped. The folds without training are those of
benchmarks/evidence.py, and their answers are shared with it.

    python benchmarks/learned.py models/vit_cifar10_cpu_adamw --data-dir cifar10 --amp
    python benchmarks/learned.py models/vit_cifar10_cpu_adamw --data-dir cifar10 --part others
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from evidence import Answers, margins
from judging import Judge, Kept
from PIL.Image import Image
from tables import HERE, markdown
from torch import Tensor, nn
from trainings import is_trained, minutes, trained

import vitfold
from vitfold.cli import options, show, values
from vitfold.cli.images import batches_of
from vitfold.data import Source, labelled
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.saving.models import create_model
from vitfold.tools import draw
from vitfold.tools.intervals import interval
from vitfold.tools.measure import flops
from vitfold.tools.validate import Batch, predict

Rows = list[list[str]]
Trainings = dict[str, list[str]]

FREE = (vitfold.ToMe, vitfold.DFE, vitfold.LGTM, vitfold.Ward)
LTMP = ["--method", "ltmp"]
VARIANTS = {
    "LTMP": LTMP,
    "LTMP, merge only": [*LTMP, "--method-kwargs", "prune=False"],
    "LTMP, prune only": [*LTMP, "--method-kwargs", "merge=False"],
}
BRIEF = ["--epochs", "1", "--lr", "1e-4", "--distill", "soft", "--distill-temperature", "3"]
MATRICES = ["--epochs", "1", "--lr", "1e-3", "--freeze", "model", "--distill", "soft"]
AS_LONG, ALL = "dense, trained as long", "PruneMerge, all"
OTHERS = {
    AS_LONG: ["--method", "none", *BRIEF],
    "PruneMerge, matrices": ["--method", "prune-merge", *MATRICES],
    ALL: ["--method", "prune-merge", *BRIEF],
    "EViT": ["--method", "evit", *BRIEF],
    "DynamicViT": ["--method", "dynamicvit", *BRIEF],
    "A-ViT": ["--method", "avit", *BRIEF],
    "ToMe": ["--method", "tome", *BRIEF],
    "Ward": ["--method", "ward", *BRIEF],
}
LONG = {f"{name}, 3 epochs": [*OTHERS[name], "--epochs", "3"] for name in (AS_LONG, ALL, "Ward")}
"""What is trained for longer too."""
FOUND = "PruneMerge, found"
FROM = {"PruneMerge, matrices": [FOUND]}
"""What else is measured of a training."""
BRIEFLY = "train[:30%]"
"""What those are trained on, of the images that the model was trained on."""
COLUMNS = (
    "fold", "FLOPs asked", "FLOPs on these images", "top-1", "95 %", "against dense",
    "agrees with dense", "minutes of training",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is trained, where it goes, and what was said by what is trained already."""

    model: Path
    data: Path
    split: str
    output: Path
    amp: bool
    archive: Answers

    def place(self, variant: str, share: float) -> Path:
        """The directory of one training."""
        short = variant.lower().replace(",", "").replace(" ", "-")
        return self.output / f"{short}-{self.model.name}-{share}"

    def train(self, variant: str, share: float, inputs: list[Any]) -> Path:
        """The trained model; nothing is done twice."""
        place = self.place(variant, share)
        if not is_trained(place):
            names = (variant, *FROM.get(variant, ()))
            gone = self.archive.kept.forget(*(f"{name}, flops={share}" for name in names))
            if gone:
                show.note(f"said before, asked again: {', '.join(gone)}")
        inputs = [
            *inputs, "--data-dir", self.data, "--train-split", self.split, "--no-val",
            "--no-aug", "--checkpoint-every", "50",
            *(["--flops", share] if share < 1 else []), *(["--amp"] if self.amp else []),
        ]  # fmt: skip
        return trained(place, self.model, inputs)


def main(
    model: options.ModelName,
    data_dir: Annotated[Path, typer.Option(help="Holds the splits.")],
    part: Annotated[str, typer.Option(help="thresholds, others, longer, or all.")] = "all",
    train_split: Annotated[
        str, typer.Option(help="What thresholds are learned on, and the longer trainings.")
    ] = "train[:90%]",
    briefly: Annotated[str, typer.Option(help="What the others are trained on.")] = BRIEFLY,
    split: options.Split = "test",
    limit: options.Limit = None,
    shares: Annotated[str, typer.Option(help="For thresholds.")] = "0.75,0.6,0.5,0.4",
    other_shares: Annotated[str, typer.Option(help="For the others.")] = "0.65,0.5",
    without: Annotated[list[str], typer.Option(help="Trainings to leave out.")] = [],  # noqa: B006
    amp: options.Amp = False,
    output: Annotated[Path, typer.Option(help="For trainings and answers.")] = Path("local"),
) -> None:
    """Train what is missing, measure, and write the tables."""
    dense = create_model(model, pretrained=True).eval()
    batches = list(batches_of(dense, Source("", data_dir, split), limit, 250, 0))
    judge = Judge(dense, batches)
    kept = Kept(output / f"evidence-{Path(model).name}.safetensors")
    archive = Answers(kept, judge.labels)
    bench = Bench(judge, archive, limit)
    if part in ("all", "thresholds"):
        setting = Setting(Path(model), data_dir, train_split, output, amp, archive)
        thresholds(bench, setting, values.shares(shares))
    if part in ("all", "others"):
        setting = Setting(Path(model), data_dir, briefly, output, amp, archive)
        others("others", bench, setting, values.shares(other_shares), chosen(OTHERS, without))
    if part in ("all", "longer"):
        setting = Setting(Path(model), data_dir, train_split, output, amp, archive)
        others("longer", bench, setting, values.shares(other_shares), chosen(LONG, without))


def chosen(trainings: Trainings, without: Sequence[str]) -> Trainings:
    """All but those whose names begin so."""
    return {n: inputs for n, inputs in trainings.items() if not n.startswith(tuple(without))}


@dataclass(frozen=True)
class Bench:
    """The dense model and the images that all are measured on, and what was said of them."""

    judge: Judge
    archive: Answers
    limit: int | None

    @property
    def dense(self) -> nn.Module:
        """The model before anything is done to it."""
        return self.judge.dense

    @property
    def batches(self) -> list[Batch]:
        """The images, with labels."""
        return self.judge.batches

    def rows(self, folds: Iterator[tuple[str, float, Any, str]], known: Container[str]) -> Rows:
        """Figures of some folds; those of names that are known say their share in their name."""
        result, cost = [], dense_cost(self.dense, self.batches)
        for name, share, new, took in folds:
            key = f"{name}, flops={share}" if name in known else name
            if key not in self.archive.kept or (self.limit is not None):
                self.archive.kept.add(key, self.judge.measure(new))
            result.append(row(key, share, reached(new, self.batches, cost), took, self.archive))
            show.console.print(" | ".join(result[-1]), markup=False)
        return result

    def tables(self, name: str, parts: list[tuple[str, tuple[str, ...], Rows]], end: str) -> None:
        """Show tables, and write them."""
        lines = [f"# {name}: {len(self.archive.labels)} images", ""]
        for title, columns, rows in parts:
            show.table(title, columns, rows)
            lines.extend([f"## {title}", "", *markdown(columns, rows), ""])
        target = HERE / f"{name}.md"
        target.write_text("\n".join([*lines, end]), encoding="utf-8")
        show.written(target)


def thresholds(bench: Bench, setting: Setting, shares: list[float]) -> None:
    """LTMP beside what needs no training."""
    rows = bench.rows(learned_folds(bench.dense, setting, shares), VARIANTS)
    learned = create_model(str(setting.train("LTMP", 0.6, VARIANTS["LTMP"]))).eval()
    sure = margins(bench.dense, bench.batches)
    picture = HERE / f"learned-{setting.model.name}.png"
    extremes(learned, bench.batches).save(picture)
    kept = spread(learned, bench.batches, sure, bench.archive)
    bench.tables(
        f"learned-{setting.model.name}",
        [
            ("One epoch of thresholds, and no training", COLUMNS, rows),
            ("LTMP against each", DUEL, list(duels(bench.archive, shares))),
            ("How many tokens images keep", SPREAD, kept),
            ("Frozen", FROZEN, [frozen(learned, setting, bench.batches)]),
        ],
        f"![images that keep the fewest and the most tokens]({picture.name})\n",
    )


def others(
    name: str, bench: Bench, setting: Setting, shares: list[float], trainings: Trainings
) -> None:
    """Folds whose models are trained too, beside the same without training."""
    rows = bench.rows(other_folds(bench, setting, shares, trainings), [*trainings, FOUND])
    title = f"Trained on {setting.split}, and not at all"
    bench.tables(f"{name}-{setting.model.name}", [(title, COLUMNS, rows)], "")


def learned_folds(
    dense: nn.Module, setting: Setting, shares: list[float]
) -> Iterator[tuple[str, float, Any, str]]:
    """Name, share, model and minutes of training: the dense model, what needs none, what does."""
    yield "dense", 1.0, dense, ""
    for share in shares:
        for method in FREE:
            way = method(flops=share)
            yield str(way), share, vitfold.fold(clone(dense), way), "0"
        for variant, inputs in VARIANTS.items():
            new = create_model(str(setting.train(variant, share, inputs)))
            yield variant, share, new, minutes(setting.place(variant, share))


def other_folds(
    bench: Bench, setting: Setting, shares: list[float], trainings: Trainings
) -> Iterator[tuple[str, float, Any, str]]:
    """The same of these trainings: of the dense model once, of the others for every share."""
    yield "dense", 1.0, bench.dense, ""
    dense = [name for name in trainings if name.startswith(AS_LONG)]
    for name in dense:
        longer = setting.train(name, 1.0, trainings[name])
        yield name, 1.0, create_model(str(longer)), minutes(longer.parent)
    for share in shares:
        for method in (*FREE, vitfold.EViT):
            way = method(flops=share)
            yield str(way), share, vitfold.fold(clone(bench.dense), way), "0"
        for name in [name for name in trainings if name not in dense]:
            new = create_model(str(setting.train(name, share, trainings[name])))
            for other in FROM.get(name, ()):  # as they were found, on the weights that they fit
                yield other, share, vitfold.fold(clone(bench.dense), fold_of(new).method), "0"
            yield name, share, new, minutes(setting.place(name, share))


def dense_cost(dense: nn.Module, batches: list[Batch]) -> float:
    """What an image costs in the dense model."""
    images = batches[0][0]
    return flops(find(dense).trunk, images) / len(images)


def reached(new: nn.Module, batches: list[Batch], cost: float) -> float:
    """The share of the dense FLOPs that these images cost, half a thousand of them."""
    some = torch.cat([images for images, _ in batches])
    some = some[:: max(1, len(some) // 512)][:512]
    return flops(find(new.eval()).trunk, some) / len(some) / cost


def row(key: str, share: float, reached: float, minutes: str, archive: Answers) -> list[str]:
    """Figures of one fold."""
    numbers, images = archive.of(key), len(archive.labels)
    right, same = (int(numbers[figure].sum()) for figure in ("right", "agreement"))
    return [
        key,
        f"{share:.2f}",
        f"{reached:.3f}",
        f"{right / images:.2%}",
        "{:.1%} to {:.1%}".format(*interval(right, images)),
        archive.told(key, "dense", "right"),
        f"{same / images:.2%}",
        minutes,
    ]


DUEL = ("LTMP against", "FLOPs", "top-1", "agreement with dense")


def duels(archive: Answers, shares: list[float]) -> Iterator[list[str]]:
    """How much better LTMP is than another fold at the same share, in points."""
    for share in shares:
        others = [str(method(flops=share)) for method in FREE]
        others += [f"{variant}, flops={share}" for variant in VARIANTS if variant != "LTMP"]
        for other in others:
            ours = f"LTMP, flops={share}"
            told = (archive.told(ours, other, figure) for figure in ("right", "agreement"))
            yield [other, f"{share:.2f}", *told]


SPREAD = ("images", "number", "fewest", "a quarter", "median", "three quarters", "most", "margin")


def spread(
    model: nn.Module, batches: list[Batch], sure: Tensor, archive: Answers
) -> list[list[str]]:
    """Tokens after the last block, of all images and of parts of them; at the end, the correlation
    of ranks with the margin by which the dense model is sure."""
    counts = tokens_left(model, batches)
    right = archive.best("dense") == archive.labels
    parts = {
        "all": torch.ones_like(right),
        "the dense model is right": right,
        "the dense model is wrong": ~right,
        "surest quarter": sure >= sure.quantile(0.75),
        "least sure quarter": sure <= sure.quantile(0.25),
    }
    points = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=counts.dtype)
    rows = [
        [name, str(int(p.sum())), *(f"{q:.0f}" for q in counts[p].quantile(points)),
         f"{float(sure[p].median()):.2f}"]
        for name, p in parts.items()
    ]  # fmt: skip
    ranks = torch.stack([counts.argsort().argsort(), sure.argsort().argsort()]).double()
    rows.append([f"rank correlation {float(torch.corrcoef(ranks)[0, 1]):+.2f}", *[""] * 7])
    return rows


def tokens_left(model: nn.Module, batches: list[Batch]) -> Tensor:
    """Of every image, after the last block."""
    left = [vitfold.trace(model, images).counts[-1] for images, _ in batches]
    return torch.tensor([count for counts in left for count in counts], dtype=torch.float64)


def extremes(model: nn.Module, batches: list[Batch], each: int = 5) -> Image:
    """The images that keep the fewest tokens, and those that keep the most, as tokens."""
    order = tokens_left(model, batches).argsort()
    chosen = torch.cat([order[:each], order[-each:]])
    images = torch.cat([batch for batch, _ in batches])[chosen]
    traced = vitfold.trace(model, images)
    words = [f"{count} tokens" for count in traced.counts[-1]]
    pictures = [draw.plain(image) for image in images]
    drawn = [traced.draw(number) for number in range(len(images))]
    return draw.row(pictures + drawn, [""] * len(pictures) + words, across=len(pictures))


FROZEN = ("numbers", "learned, by image", "frozen to their means")


def frozen(learned: nn.Module, setting: Setting, batches: list[Batch]) -> list[str]:
    """Top-1 of both."""
    fixed = create_model(str(setting.train("LTMP", 0.6, VARIANTS["LTMP"]))).eval()
    data = labelled(learned, Source("", setting.data, setting.split), 512)
    vitfold.freeze(fixed, torch.stack([image for image, _ in data]))
    message = []
    for new in (learned, fixed):
        answers = predict(new, batches)
        message.append(f"{float((answers.best[:, 0] == answers.labels).double().mean()):.2%}")
    return ["0.6 of the FLOPs", *message]


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
