"""Counts and pictures of what becomes of tokens, as `vitfold trace` shows them."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.cli import options, show
from vitfold.data import preprocessing
from vitfold.data.pictures import read_photograph
from vitfold.segment import Labels, Segmenter, scene_transform
from vitfold.segment.metrics import as_segmenter
from vitfold.segment.pictures import compare
from vitfold.segment.scenes import annotation_of, check_size
from vitfold.tools import draw
from vitfold.tools.maps import beside
from vitfold.tools.trace import Trace
from vitfold.tools.trace import trace as trace_
from vitfold.tools.wants import data_config


def check_pixels(model: nn.Module) -> None:
    """Refuse a model that has no class for every pixel."""
    as_segmenter(model)


def trace_images(
    model: nn.Module,
    images: list[Path],
    on: torch.device,
    task: options.Task,
    stride: int | None,
    output: Path,
) -> None:
    """Trace images through a folded model and write their pictures."""
    pictures = [read_photograph(path) for path in images]
    truths: list[Tensor | None] = []
    if isinstance(model, Segmenter):
        labels = task.labels(model.classes)
        truths = [
            _truth(path, picture, labels) for path, picture in zip(images, pictures, strict=True)
        ]
    prepare = preprocessing(model)
    batch = torch.stack([prepare(picture) for picture in pictures]).to(on)
    config = data_config(model)
    traced = replace(trace_(model, batch), channels=(config["mean"], config["std"]))
    _show(traced, images)
    _draw(traced, images, output)
    maps = [] if isinstance(model, Segmenter) else beside(model, batch, pictures)
    for name, picture in zip(_names(images), maps, strict=False):
        target = output / f"{name}-map.png"
        draw.save(picture, target)
        show.written(target)
    for name, picture, truth in zip(_names(images), pictures, truths, strict=False):
        target = output / f"{name}-classes.png"
        draw.save(compare(model, picture, scene_transform(model), truth, stride), target)
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
