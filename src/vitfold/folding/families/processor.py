"""The options of a checkpoint's image processor in transformers, as timm's options for data."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from vitfold.errors import DataError

Options = dict[str, Any]

ATTRIBUTE = "image_processor"
"""The attribute of a vision model's configuration that holds them: saved and loaded with it."""

FILE = "preprocessor_config.json"

SWITCHES = ("do_rescale", "do_normalize", "do_center_crop")
SIZES = ("size", "crop_size")
CHANNELS = ("image_mean", "image_std")
TYPES = ("image_processor_type", "feature_extractor_type")
FIELDS = (*TYPES, "resample", "rescale_factor", *SWITCHES, *SIZES, *CHANNELS)
"""The options of an image processor that change what a model sees."""

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's ways of making images smaller, by number."""

SHORTER = ("CLIP", "Bit")
"""Processors that mean the shorter side by a size of one number; others mean both."""

MOST = 2**16
"""The longest side of an image, in pixels."""


def read(checkpoint: str) -> Options | None:
    """The options of a checkpoint on the hub or in a directory; None where it has no such file."""
    from transformers.image_processing_base import ImageProcessingMixin

    with contextlib.suppress(OSError):
        config, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
        options = {name: config[name] for name in FIELDS if config.get(name) is not None}
        translated(options)
        return options
    return None


def of(config: Any) -> Options | None:
    """The options that `put` left in the configuration of a model; None without any."""
    options: Options | None = getattr(_vision(config), ATTRIBUTE, None)
    return options


def put(config: Any, options: Options | None) -> None:
    """Keep the options in the configuration of a model."""
    if options is not None:
        setattr(_vision(config), ATTRIBUTE, options)


def _vision(config: Any) -> Any:
    """The configuration of the vision transformer in a model's."""
    parts = (getattr(config, name, None) for name in ("vision_config", "backbone_config"))
    return next((part for part in parts if part is not None), config)


def input_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of what a model gets; None where they follow from the image."""
    crops = options.get("do_center_crop", False) and "crop_size" in options
    name = "crop_size" if crops else "size"
    size = options.get(name)
    if isinstance(size, Mapping):
        return (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None
    keeps = not crops and _kind(options).startswith(SHORTER)
    return None if size is None or keeps else (_side(name, size),) * 2


def resized(options: Options | None, side: int) -> Options:
    """The options with which a model gets images of another size, of which it sees as much."""
    before = dict(options or DEFAULT)
    if before.get("do_center_crop", False) and "crop_size" in before:
        edge = _side("size", before["size"]) / _side("crop_size", before["crop_size"])
        own = "shortest_edge" if "shortest_edge" in before["size"] else None
        larger = round(side * edge)
        size = {own: larger} if own else {"height": larger, "width": larger}
        return before | {"size": size, "crop_size": {"height": side, "width": side}}
    return before | {"size": {"height": side, "width": side}}


DEFAULT: Options = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
}
"""Of a model that says nothing of its images: ImageNet's."""


def translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as those of `timm.data.resolve_data_config`; refused where they make no sense."""
    for name in SWITCHES:
        _expect(
            name,
            options.get(name, True),
            isinstance(options.get(name, True), bool),
            "true or false",
        )
    way = options.get("resample", 2)
    _expect("resample", way, type(way) is int and 0 <= way < len(RESAMPLE), "0 to 5")
    return {**_normalized(options), **_resized(options), "interpolation": RESAMPLE[way]}


def _expect(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise DataError(f"{FILE}: {name}={value!r}: expected {expected}")


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _normalized(options: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation: transformers takes pixels from 0 to 255, timm from 0 to 1."""
    factor = options.get("rescale_factor", 1 / 255) if options.get("do_rescale", True) else 1
    _expect("rescale_factor", factor, _number(factor) and factor > 0, "a number above 0")
    channels: dict[str, Any] = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    if options.get("do_normalize", True):
        channels |= {name: options[name] for name in CHANNELS if name in options}
    for name, values in channels.items():
        three = isinstance(values, list | tuple) and len(values) == 3 and all(map(_number, values))
        _expect(name, values, three, "three numbers")
    _expect("image_std", channels["image_std"], min(channels["image_std"]) > 0, "numbers above 0")
    scaled = {n: tuple(v / (255 * factor) for v in values) for n, values in channels.items()}
    return {"mean": scaled["image_mean"], "std": scaled["image_std"]}


def _resized(options: Mapping[str, Any]) -> dict[str, Any]:
    """The share of an image that is looked at, and whether its sides keep their relation."""
    crops = options.get("do_center_crop", False) and "crop_size" in options
    size = options.get("size", 1)
    keeps = (
        "shortest_edge" in size if isinstance(size, Mapping) else _kind(options).startswith(SHORTER)
    )
    edge = _side("size", size)
    share = _side("crop_size", options["crop_size"]) / edge if crops else 1.0
    return {"crop_pct": min(share, 1.0), "crop_mode": "center" if keeps else "squash"}


def _kind(options: Mapping[str, Any]) -> str:
    """What a processor calls itself."""
    return next((str(options[name]) for name in TYPES if name in options), "")


def _side(name: str, size: object) -> int:
    """Pixels along the side of a square, or along the shortest side."""
    side = size
    if isinstance(size, Mapping):
        side = size.get("shortest_edge", size.get("height", 1))  # SigLIP2 has no height
    _expect(name, size, type(side) is int and 0 < side <= MOST, "pixels, as 224")
    assert isinstance(side, int)  # it was looked at
    return side
