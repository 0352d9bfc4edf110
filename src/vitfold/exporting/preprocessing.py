"""How images become what an exported model takes, as an image processor of transformers."""

import json
import math
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.folding.families import find, processor
from vitfold.tools.wants import data_config

FILE = processor.FILE


def write(model: nn.Module, directory: Path) -> None:
    """`preprocessor_config.json`, which `AutoImageProcessor.from_pretrained` reads."""
    text = json.dumps(processor_options(model), indent=2)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def processor_options(model: nn.Module) -> dict[str, Any]:
    """The options of a model's image processor: its own, or what timm's mean."""
    own = processor.of(getattr(find(model).trunk, "config", None) or getattr(model, "config", None))
    return _complete(own) if own else _translated(model)


def _complete(own: dict[str, Any]) -> dict[str, Any]:
    return own if any(name in own for name in processor.TYPES) else {**TYPE, **own}


TYPE = {"image_processor_type": "CLIPImageProcessor"}
"""It resizes the shorter side, and crops the centre."""


def _translated(model: nn.Module) -> dict[str, Any]:
    config = data_config(model)
    height, width = getattr(model, "window", config["input_size"][1:])
    squash = config.get("crop_mode") == "squash" or height != width
    edge = math.floor(min(height, width) / config["crop_pct"])
    size = {"height": height, "width": width} if squash else {"shortest_edge": edge}
    return {
        **TYPE,
        "do_convert_rgb": config["input_size"][0] == 3,
        "do_resize": True,
        "size": size,
        "resample": processor.RESAMPLE.index(config["interpolation"]),
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
    }
