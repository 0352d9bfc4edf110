"""Draw the pictures of docs/gallery.md: `python scripts/draw_gallery.py`.

The photographs are scikit-learn's bundled `flower.jpg` (by vultilion, CC BY 2.0) and `china.jpg`
(by danielbuechele, CC BY 2.0). The weights are random: what is grouped here is what looks alike.
"""

from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from PIL import Image
from sklearn.datasets import load_sample_image

import vitfold
from vitfold.data import preprocessing
from vitfold.tools import draw

METHODS = ("tome", "ward", "lgtm", "dfe", "pitome", "evit", "drop")

BLOCKS = (2, 5, 8, 11)
"""The blocks behind which tokens are shown."""

COLOURS = 64
"""So few keep a picture small."""


def main(
    flops: Annotated[float, typer.Option(min=0.1, max=1.0)] = 0.6,
    output: Path = Path("docs/gallery"),
) -> None:
    """Trace the photographs through a ViT-S of 12 blocks, by every method."""
    output.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        for name in ("flower", "china"):
            strip(name, method, flops).save(output / f"{name}-{method}.png", optimize=True)


def strip(name: str, method: str, flops: float) -> Image.Image:
    """A photograph, and its tokens behind some blocks, side by side."""
    torch.manual_seed(0)
    model = vitfold.fold(timm.create_model("vit_small_patch16_224").eval(), method, flops=flops)
    photo = preprocessing(model)(Image.fromarray(load_sample_image(f"{name}.jpg")))
    trace = vitfold.trace(model, photo.unsqueeze(0))
    pictures = [trace.draw(0, block=block) for block in BLOCKS]
    labels = [f"block {block}: {trace.counts[block][0]}" for block in BLOCKS]
    original = draw.plain(draw.denormalized(photo, trace.channels))
    row = draw.row([original, *pictures], [name, *labels])
    return row.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


if __name__ == "__main__":
    typer.run(main)
