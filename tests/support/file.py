"""A file of a user's own, with functions in it that make models."""

from pathlib import Path

RUNS = "runs.txt"
"""Beside the file: a line for every time that it is imported, or a function of it called."""

TEXT = f'''
import pathlib

import torch
from bounds import Clamp
from timm.models.vision_transformer import VisionTransformer

from vitfold.segment import Segmenter


def note(what):
    with pathlib.Path(__file__).with_name("{RUNS}").open("a") as file:
        file.write(what + "\\n")


note("import")


def build(img_size=32, depth=2, num_classes=2):
    note("build")
    torch.manual_seed(depth)
    model = VisionTransformer(
        img_size, 8, embed_dim=24, num_heads=3, depth=depth, num_classes=num_classes
    )
    model.blocks[0].norm1 = torch.nn.Sequential(model.blocks[0].norm1, Clamp())
    return model


def fixed():
    return build(num_classes=3)


def scenes():
    model = build(num_classes=0)
    return Segmenter(model, 2, "linear")
'''

BESIDE = """
from torch import nn


class Clamp(nn.Module):
    def forward(self, x):
        return x.clamp(-2, 2)
"""


def own_file(directory: Path, name: str = "model.py") -> Path:
    """A file that imports another one beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bounds.py").write_text(BESIDE)
    (directory / name).write_text(TEXT)
    return directory / name


def runs(file: Path) -> list[str]:
    """What was run of it so far."""
    path = file.with_name(RUNS)
    return path.read_text().splitlines() if path.exists() else []
