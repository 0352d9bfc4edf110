"""The two photographs that scikit-learn brings, and what becomes of their tokens."""

from collections.abc import Iterator
from importlib import import_module

import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.data import preprocessing
from vitfold.errors import missing
from vitfold.folding.fold import clone, fold
from vitfold.lab.demo.speed import SHARE
from vitfold.tools.trace import trace

NAMES = ("flower", "china")

METHODS = ("ward", "lgtm")


def photographs() -> list[Image.Image]:
    """A flower by vultilion and a palace in China by danielbuechele, both CC BY 2.0."""
    try:
        datasets = import_module("sklearn.datasets")
    except ImportError:
        raise missing("scikit-learn", "demo") from None
    return [Image.fromarray(datasets.load_sample_image(f"{name}.jpg")) for name in NAMES]


def batch(model: nn.Module, count: int) -> Tensor:
    """`[count, C, H, W]`: the photographs as a model takes them, again and again."""
    prepare = preprocessing(model)
    pixels = [prepare(photograph) for photograph in photographs()]
    return torch.stack([pixels[number % len(pixels)] for number in range(count)])


def strips(dense: nn.Module) -> Iterator[tuple[str, Image.Image]]:
    """Names of files and pictures: each photograph, and its tokens after every block, by each of
    some methods. Where weights are random, what merges is what looks alike."""
    pixels = batch(dense, len(NAMES))
    for method in METHODS:
        traced = trace(fold(clone(dense), method, flops=SHARE), pixels)
        for number, name in enumerate(NAMES):
            yield f"{name}-{method}.png", traced.strip(number)
