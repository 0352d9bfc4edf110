"""The reference models of docs/evidence.md: `python benchmarks/reference.py adamw --data-dir DIR`.

Trains a small ViT on CIFAR-10 with `vitfold train`, with AdamW or with sharpness-aware steps on top
of it, measures it on the test images, and writes it to models/ with a card: half-precision weights
that any command takes by their directory. DIR holds train.tar and test.tar (or folders) of class
folders. The last tenth of the training images is kept out, for choosing between methods.

It takes an hour (adamw) or two (sam) on two cores with bfloat16 arithmetic; `--resume` goes on.
"""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitfold.cli import show
from vitfold.data import Source, labelled, loader
from vitfold.saving.models import create_model, save_model
from vitfold.tools.results import machine
from vitfold.tools.validate import Report, predict, score

MODELS = Path(__file__).parent.parent / "models"

COMMON = (
    "--img-size 32 --train-split train[:90%] --val-split train[90%:] "
    "--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616 --crop-pct 1 --scale 0.6,1 "
    "--color-jitter 0 --weight-decay 0.05 --clip-grad 1 --amp --seed 0"
)

SIZES = {
    "cpu": "--model-kwargs 'patch_size=4 embed_dim=128 depth=12 num_heads=2' "
    "--epochs 15 --warmup-epochs 1 --batch-size 128 --lr 1e-3 --workers 1 --device cpu "
    "--checkpoint-every 50",
    "gpu": "--model-kwargs 'patch_size=2 embed_dim=192 depth=12 num_heads=3' "
    "--epochs 100 --warmup-epochs 5 --batch-size 512 --lr 1e-3 --workers 16 --device cuda "
    "--aa rand-m9-mstd0.5 --reprob 0.25 --smoothing 0.1 --torchcompile",
}
"""The model and what suits its machine: 64 patches for two cores, 256 for a GPU."""

RULES = {"adamw": "", "sam": "--sam 0.05"}

MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
}
"""glibc hands large blocks back at once by default, and a step on the CPU then waits for pages."""


def main(
    rule: Annotated[str, typer.Argument(metavar="adamw|sam", help="How it is trained.")],
    data_dir: Annotated[Path, typer.Option(help="Holds train.tar and test.tar.")],
    size: Annotated[str, typer.Option(help="cpu (64 patches) or gpu (256 patches).")] = "cpu",
    output: Annotated[Path, typer.Option(help="For the training itself.")] = Path("local"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training.")] = False,
) -> None:
    """Train, measure, and write the model with its card."""
    run, target = output / f"{size}-{rule}", MODELS / f"vit_cifar10_{size}_{rule}"
    options = shlex.split(f"{COMMON} {SIZES[size]} {RULES[rule]}")
    command = ["vitfold", "train", "vit_tiny_patch16_224", *options]
    places = ["--data-dir", str(data_dir), "--output", str(run), *["--resume"][: int(resume)]]
    subprocess.run(
        [sys.executable, "-m", *command, *places], env=MEMORY | dict(os.environ), check=True
    )
    model: Any = create_model(str(run / "last"))
    model.pretrained_cfg |= {"tag": f"cifar10_{rule}", "license": "apache-2.0"}
    save_model(model.half(), target)
    report = measure(target, data_dir)
    epochs = list(csv.DictReader((run / "log.csv").open(encoding="utf-8")))
    (target / "README.md").write_text(card(command, report, epochs), encoding="utf-8")
    show.written(target)


def measure(model: Path, data_dir: Path) -> Report:
    """On all test images, in single precision."""
    new = create_model(str(model)).eval()
    batches = loader(labelled(new, Source("", data_dir, "test")), 250, 0)
    with show.bar("testing", len(batches)) as progress:
        printout = predict(new, batches, progress=progress)
    return score(printout, printout)


def card(command: list[str], report: Report, epochs: list[dict[str, str]]) -> str:
    """What it is, where it comes from, and how it got there."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    curve = [
        f"| {row['epoch']} | {float(row['loss']):.4f} | {float(row['top1']):.2%} |"
        for row in epochs
    ]
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: timm",
        "tags: [image-classification, timm, vitfold]",
        "datasets: [cifar10]",
        "---",
        "",
        "# A small ViT on CIFAR-10, to measure token reduction on",
        "",
        f"Top-1 on {report.images:,} test images: {report.top1:.2%} "
        f"(95 % interval {report.top1_low:.2%} to {report.top1_high:.2%}).",
        "",
        "Trained from nothing, on the first nine tenths of the training images of every class; "
        "the last tenth served for the accuracies below, and serves for choosing between methods. "
        "The weights are those after the last epoch, in half precision.",
        "",
        "```",
        f"{shlex.join(command)} --data-dir DIR",
        "```",
        "",
        f"vitfold commit {commit}; {json.dumps(machine())}",
        "",
        "| epoch | training loss | top-1 held out |",
        "|---|---|---|",
        *curve,
        "",
        "Use: `vitfold bench models/NAME`, or `vitfold.create_model('models/NAME')`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
