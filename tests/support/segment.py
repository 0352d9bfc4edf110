"""Small segmenters, and scenes for them."""

from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import to_pil_image

from vitfold.segment import Segmenter, create_segmenter

SMALL: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "depth": 3}


def segmenter(decoder: str = "mask", **options: Any) -> Segmenter:
    torch.manual_seed(0)
    inputs = {"img_size": 48, "patch_size": 8, **SMALL, **options}
    return create_segmenter("vit_tiny_patch16_224", 4, decoder, **inputs).eval()


def scenes(root: Path, number: int = 5, size: tuple[int, int] = (60, 44)) -> Path:
    """Pictures with a bright square on dark ground: class 1 on class 0; a corner has no class."""
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True)
    for place in range(number):
        picture, labels = torch.full((3, size[1], size[0]), 40), torch.zeros(size[1], size[0])
        picture[:, 8 : 16 + place, 10:30], labels[8 : 16 + place, 10:30] = 210, 1
        labels[:4, :4] = 9
        to_pil_image(picture.byte()).save(root / "images" / f"{place}.png")
        to_pil_image(labels.byte()).save(root / "annotations" / f"{place}.png")
    return root
