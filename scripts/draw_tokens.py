"""Draw the picture of the README: `python scripts/draw_tokens.py`.

The photograph is scikit-learn's bundled `flower.jpg` (by vultilion, CC BY 2.0). The weights are
random: what is grouped here is what looks alike.
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


def main(
    r: Annotated[int, typer.Option(min=1)] = 16,
    output: Path = Path("docs/tokens.png"),
) -> None:
    """Trace one photograph through a ViT-S of 12 blocks."""
    torch.manual_seed(0)
    model = vitfold.fold(timm.create_model("vit_small_patch16_224").eval(), vitfold.LGTM(r=r))
    photo = preprocessing(model)(Image.fromarray(load_sample_image("flower.jpg")))
    vitfold.trace(model, photo.unsqueeze(0)).strip(0).save(output, optimize=True)


if __name__ == "__main__":
    typer.run(main)
