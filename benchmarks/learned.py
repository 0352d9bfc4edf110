"""What an epoch of learning thresholds is worth: `python benchmarks/learned.py MODEL --data-dir D`.

Trains LTMP, merging alone and dropping alone for every share of the FLOPs, by `vitfold train`, and
sets them beside the methods that need no training, on the same images: benchmarks/learned-NAME.md.
What was trained stays in --output, and a run goes on where it was stopped. The folds without
training are those of benchmarks/evidence.py, and their answers are shared with it.

    python benchmarks/learned.py models/vit_cifar10_cpu_adamw --data-dir cifar10
"""

import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from evidence import Answers, margins, markdown
from PIL.Image import Image
from torch import Tensor, nn

import vitfold
from vitfold import draw
from vitfold.cli import options, show
from vitfold.cli.validate import batches_of
from vitfold.data import Source, labelled
from vitfold.families import find
from vitfold.fold import clone
from vitfold.measure import flops
from vitfold.models import create_model
from vitfold.validate import Batch, interval, predict

SHARES = (0.75, 0.6, 0.5, 0.4)
FREE = (vitfold.ToMe, vitfold.DFE, vitfold.LGTM, vitfold.Ward)
VARIANTS = {"LTMP": "", "LTMP, merge only": "prune=False", "LTMP, prune only": "merge=False"}
COLUMNS = (
    "fold", "FLOPs asked", "FLOPs on these images", "top-1", "95 %", "against dense",
    "agrees with dense", "minutes of training",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is trained, and where it goes."""

    model: Path
    data: Path
    split: str
    output: Path

    def place(self, variant: str, share: float) -> Path:
        """The directory of one training."""
        short = variant.lower().replace(",", "").replace(" ", "-")
        return self.output / f"{short}-{self.model.name}-{share}"

    def train(self, variant: str, share: float) -> Path:
        """The trained model; nothing is done twice."""
        place = self.place(variant, share)
        if not (place / "last" / "plan.json").exists():
            more = ["--method-kwargs", VARIANTS[variant]] if VARIANTS[variant] else []
            command = [
                sys.executable, "-m", "vitfold", "train", self.model, "--method", "ltmp",
                "--flops", share, "--data-dir", self.data, "--train-split", self.split, "--no-val",
                "--no-aug", "--checkpoint-every", "50", "--output", place, "--resume", *more,
            ]  # fmt: skip
            done = subprocess.run([str(part) for part in command], check=False)
            if done.returncode and not (place / "last" / "plan.json").exists():
                raise SystemExit(done.returncode)
        return place / "last"


def main(
    model: options.ModelName,
    data_dir: Annotated[Path, typer.Option(help="Holds the splits.")],
    train_split: Annotated[
        str, typer.Option(help="What thresholds are learned on.")
    ] = "train[:90%]",
    split: options.Split = "test",
    limit: options.Limit = None,
    shares: Annotated[str, typer.Option(help="Of the dense FLOPs.")] = "0.75,0.6,0.5,0.4",
    output: Annotated[Path, typer.Option(help="For trainings and answers.")] = Path("local"),
) -> None:
    """Train what is missing, measure, and write the tables."""
    dense = create_model(model, pretrained=True).eval()
    setting = Setting(Path(model), data_dir, train_split, output)
    batches = list(batches_of(model, dense, Source("", data_dir, split), limit, 250, 0))
    said = Answers(output / f"evidence-{setting.model.name}.safetensors")
    cost = dense_cost(dense, batches)
    rows, lines = [], [f"# {setting.model.name}: {sum(len(b[1]) for b in batches)} images", ""]
    for name, share, made, minutes in folds(dense, setting, options.shares(shares)):
        key = f"{name}, flops={share}" if made is not None and name in VARIANTS else name
        if key not in said.best or (limit is not None):
            answers = predict(made.eval(), batches)
            said.add(key, answers.best[:, 0], answers.labels)
        rows.append(row(key, share, reached(made, batches, cost), minutes, said))
        show.console.print(" | ".join(rows[-1]), markup=False)

    def tell(title: str, columns: tuple[str, ...], found: list[list[str]]) -> None:
        show.table(title, columns, found)
        lines.extend([f"## {title}", "", *markdown(columns, found), ""])

    tell("One epoch of thresholds, and no training", COLUMNS, rows)
    tell("LTMP against each", DUEL, list(duels(said, options.shares(shares))))
    sure = margins(dense, batches)
    learned = create_model(str(setting.train("LTMP", 0.6))).eval()
    tell("How many tokens images keep", SPREAD, spread(learned, batches, sure, said))
    picture = Path("benchmarks") / f"learned-{setting.model.name}.png"
    extremes(learned, batches).save(picture)
    lines += [f"![images that keep the fewest and the most tokens]({picture.name})", ""]
    tell("Frozen", FROZEN, [frozen(learned, setting, batches)])
    target = Path("benchmarks") / f"learned-{setting.model.name}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    show.written(target)


def folds(
    dense: nn.Module, setting: Setting, shares: list[float]
) -> Iterator[tuple[str, float, Any, str]]:
    """Name, share, model and minutes of training: the dense model, what needs none, what does."""
    yield "dense", 1.0, dense, ""
    for share in shares:
        for method in FREE:
            way = method(flops=share)
            yield str(way), share, vitfold.fold(clone(dense), way), "0"
        for variant in VARIANTS:
            made = create_model(str(setting.train(variant, share)))
            yield variant, share, made, minutes(setting.place(variant, share))


def minutes(place: Path) -> str:
    """How long the epochs of a training took; a run that was stopped tells of its rest alone."""
    with (place / "log.csv").open(encoding="utf-8") as file:
        return f"{sum(float(r['seconds']) for r in csv.DictReader(file)) / 60:.1f}"


def dense_cost(dense: nn.Module, batches: list[Batch]) -> float:
    """What an image costs in the dense model."""
    images = batches[0][0]
    return flops(find(dense).trunk, images) / len(images)


def reached(made: nn.Module, batches: list[Batch], cost: float) -> float:
    """The share of the dense FLOPs that these images cost, half a thousand of them."""
    some = torch.cat([images for images, _ in batches])
    some = some[:: max(1, len(some) // 512)][:512]
    return flops(find(made.eval()).trunk, some) / len(some) / cost


def row(key: str, share: float, reached: float, minutes: str, said: Answers) -> list[str]:
    """Figures of one fold."""
    best, images = said.best[key], len(said.labels)
    right = int((best == said.labels).sum())
    gain, spread = said.gain(key, "dense")
    same = int((best == said.best["dense"]).sum())
    return [
        key,
        f"{share:.2f}",
        f"{reached:.3f}",
        f"{right / images:.2%}",
        "{:.1%} to {:.1%}".format(*interval(right, images)),
        f"{gain * 100:+.2f} ± {spread * 100:.2f}",
        f"{same / images:.2%}",
        minutes,
    ]


DUEL = ("LTMP against", "FLOPs", "top-1", "agreement with dense")


def duels(said: Answers, shares: list[float]) -> Iterator[list[str]]:
    """How much better LTMP is than another fold at the same share, in points."""
    for share in shares:
        others = [str(method(flops=share)) for method in FREE]
        others += [f"{variant}, flops={share}" for variant in VARIANTS if variant != "LTMP"]
        for other in others:
            gains = (said.gain(f"LTMP, flops={share}", other, t) for t in ("labels", "dense"))
            told = [f"{gain * 100:+.2f} ± {wide * 100:.2f}" for gain, wide in gains]
            yield [other, f"{share:.2f}", *told]


SPREAD = ("images", "number", "fewest", "a quarter", "median", "three quarters", "most", "margin")


def spread(model: nn.Module, batches: list[Batch], sure: Tensor, said: Answers) -> list[list[str]]:
    """Tokens after the last block, of all images and of parts of them; at the end, the correlation
    of ranks with the margin by which the dense model is sure."""
    counts = tokens_left(model, batches)
    right = said.best["dense"] == said.labels
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
    return draw.row(pictures + drawn, [""] * len(pictures) + words)


FROZEN = ("numbers", "learned, by image", "frozen to their means")


def frozen(learned: nn.Module, setting: Setting, batches: list[Batch]) -> list[str]:
    """Top-1 of both."""
    fixed = create_model(str(setting.train("LTMP", 0.6))).eval()
    data = labelled(learned, Source("", setting.data, setting.split), 512)
    vitfold.freeze(fixed, torch.stack([image for image, _ in data]))
    told = []
    for made in (learned, fixed):
        answers = predict(made, batches)
        told.append(f"{float((answers.best[:, 0] == answers.labels).double().mean()):.2%}")
    return ["0.6 of the FLOPs", *told]


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
