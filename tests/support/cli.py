"""The command line as a user runs it, and images for it."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from vitfold.cli import main

SMALL = ("vit_tiny_patch16_224", "--no-pretrained", "--img-size", "96", "--model-kwargs",
         "depth=4 embed_dim=48 num_heads=3 num_classes=2")  # fmt: skip
"""A small model, as commands are asked for one."""


def vitfold_(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of `vitfold ...`."""
    monkeypatch.setattr(sys, "argv", ["vitfold", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def pictures(folder: Path, classes: int = 2, each: int = 3) -> Path:
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            colour = (label * 120, number * 60, 90)
            Image.new("RGB", (40, 30), colour).save(folder / f"class{label}" / f"{number}.png")
    return folder
