"""What a checkpoint of transformers says of its images, in timm's words."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from vitfold.errors import DataError

Said = dict[str, Any]

ATTRIBUTE = "image_processor"
"""Of the configuration of a vision model; it is saved and loaded with that."""

FILE = "preprocessor_config.json"

SWITCHES = ("do_rescale", "do_normalize", "do_center_crop")
SIZES = ("size", "crop_size")
CHANNELS = ("image_mean", "image_std")
TYPES = ("image_processor_type", "feature_extractor_type")
KEPT = (*TYPES, "resample", "rescale_factor", *SWITCHES, *SIZES, *CHANNELS)
"""What of it matters to a picture."""

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's ways of making images smaller, by number."""

SHORTER = ("CLIP", "Bit")
"""Processors that mean the shorter side by a size of one number; others mean both."""

MOST = 2**16
"""The longest side of an image, in pixels."""


def read(checkpoint: str) -> Said | None:
    """Of a checkpoint on the hub or in a directory; None where it says nothing."""
    from transformers.image_processing_base import ImageProcessingMixin

    with contextlib.suppress(OSError):
        found, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
        said = {name: found[name] for name in KEPT if found.get(name) is not None}
        translated(said)
        return said
    return None


def of(config: Any) -> Said | None:
    """What is known of the images of a model, by its configuration."""
    said: Said | None = getattr(_vision(config), ATTRIBUTE, None)
    return said


def put(config: Any, said: Said | None) -> None:
    """Keep it with the configuration."""
    if said is not None:
        setattr(_vision(config), ATTRIBUTE, said)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def translated(said: Mapping[str, Any]) -> dict[str, Any]:
    """The same for `timm.data.resolve_data_config`; refused where it makes no sense."""
    for name in SWITCHES:
        _expect(name, said.get(name, True), isinstance(said.get(name, True), bool), "true or false")
    way = said.get("resample", 2)
    _expect("resample", way, type(way) is int and 0 <= way < len(RESAMPLE), "0 to 5")
    return {**_normalized(said), **_resized(said), "interpolation": RESAMPLE[way]}


def _expect(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise DataError(f"{FILE}: {name}={value!r}: expected {expected}")


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _normalized(said: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels from 0 to 255 come to transformers, and from 0 to 1 to timm."""
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
    _expect("rescale_factor", factor, _number(factor) and factor > 0, "a number above 0")
    channels: dict[str, Any] = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    if said.get("do_normalize", True):
        channels |= {name: said[name] for name in CHANNELS if name in said}
    for name, values in channels.items():
        three = isinstance(values, list | tuple) and len(values) == 3 and all(map(_number, values))
        _expect(name, values, three, "three numbers")
    _expect("image_std", channels["image_std"], min(channels["image_std"]) > 0, "numbers above 0")
    scaled = {n: tuple(v / (255 * factor) for v in values) for n, values in channels.items()}
    return {"mean": scaled["image_mean"], "std": scaled["image_std"]}


def _resized(said: Mapping[str, Any]) -> dict[str, Any]:
    """The share of an image that is looked at, and whether its sides keep their relation."""
    crops = said.get("do_center_crop", False) and "crop_size" in said
    size = said.get("size", 1)
    kind = next((str(said[name]) for name in TYPES if name in said), "")
    keeps = "shortest_edge" in size if isinstance(size, Mapping) else kind.startswith(SHORTER)
    edge = _side("size", size)
    share = _side("crop_size", said["crop_size"]) / edge if crops else 1.0
    return {"crop_pct": min(share, 1.0), "crop_mode": "center" if keeps else "squash"}


def _side(name: str, size: object) -> int:
    """Of a square or of the shortest side."""
    side = size
    if isinstance(size, Mapping):
        side = size.get("shortest_edge", size.get("height", 1))  # SigLIP2 has no height
    _expect(name, size, type(side) is int and 0 < side <= MOST, "pixels, as 224")
    assert isinstance(side, int)  # it was looked at
    return side
