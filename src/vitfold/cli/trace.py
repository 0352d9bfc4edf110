"""`vitfold trace`: what becomes of the tokens of some images."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from vitfold.cli import options, show, values
from vitfold.cli.groups import grouped
from vitfold.data import data_config, preprocessing
from vitfold.data.pictures import read_photograph
from vitfold.segment import Labels, Segmenter, scene_transform
from vitfold.segment.metrics import as_segmenter
from vitfold.segment.pictures import compare
from vitfold.segment.scenes import annotation_of, check_size
from vitfold.tools import draw
from vitfold.tools.trace import Trace
from vitfold.tools.trace import trace as trace_


@grouped
def trace(
    choice: options.Choice,
    made: options.Made,
    task: options.Task,
    model: options.ModelName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    stride: options.Stride = None,
    plan: options.PlanDirectory = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the pictures.")
    ] = Path(),
) -> None:
    """Token counts of every block, and for every image two pictures: the groups after the last
    block (NAME-tokens.png) and after every block that changed them (NAME-blocks.png).

    Of a segmenter also what it says of every pixel, dense and folded (NAME-classes.png), beside
    the truth where the image lies in images/ and its labels in annotations/.
    """
    values.directory(output)
    ours = options.folded_by(made.model(model), plan, choice)
    if task.pixels:
        as_segmenter(ours)
    pictures = [read_photograph(path) for path in images]
    truths: list[Tensor | None] = []
    if isinstance(ours, Segmenter):
        labels = task.labels(ours.classes)
        truths = [
            _truth(path, picture, labels) for path, picture in zip(images, pictures, strict=True)
        ]
    prepare = preprocessing(ours)
    batch = torch.stack([prepare(picture) for picture in pictures]).to(made.on)
    config = data_config(ours)
    traced = replace(trace_(ours, batch), look=(config["mean"], config["std"]))
    _show(traced, images)
    _draw(traced, images, output)
    for name, picture, truth in zip(_names(images), pictures, truths, strict=False):
        target = output / f"{name}-classes.png"
        draw.save(compare(ours, picture, scene_transform(ours), truth, stride), target)
        show.written(target)


def _truth(path: Path, picture: Image.Image, labels: Labels) -> Tensor | None:
    """The labels of a photograph, where they lie beside it."""
    truth = annotation_of(path, labels)
    if truth is not None:
        check_size(truth, picture, f"the annotation of {path}")
    return truth


def _show(traced: Trace, images: list[Path]) -> None:
    rows = [[str(block), *map(str, counts)] for block, counts in enumerate(traced.counts)]
    show.table("tokens that leave each block", ["block", *(path.name for path in images)], rows)


def _names(images: list[Path]) -> list[str]:
    """What pictures of them are called."""
    names: list[str] = []
    for path in images:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names


def _draw(traced: Trace, images: list[Path], output: Path) -> None:
    for number, name in enumerate(_names(images)):
        for kind, picture in (
            ("tokens", traced.draw(number)),
            ("blocks", traced.strip(number)),
        ):
            target = output / f"{name}-{kind}.png"
            draw.save(picture, target)
            show.written(target)
