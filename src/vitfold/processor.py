"""What a checkpoint of transformers says of its images, in timm's words."""

import contextlib
from collections.abc import Mapping
from typing import Any

Said = dict[str, Any]

ATTRIBUTE = "image_processor"
"""Of the configuration of a vision model; it is saved and loaded with that."""

FILE = "preprocessor_config.json"

SWITCHES = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
SIZES = ("size", "crop_size")
CHANNELS = ("image_mean", "image_std")
KEPT = ("image_processor_type", "resample", "rescale_factor", *SWITCHES, *SIZES, *CHANNELS)
"""What of it matters to a picture."""

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's ways of making images smaller, by number."""


def read(checkpoint: str) -> Said | None:
    """Of a checkpoint on the hub or in a directory; None where it says nothing."""
    from transformers.image_processing_base import ImageProcessingMixin

    with contextlib.suppress(OSError, ValueError):
        said, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
        return {name: said[name] for name in KEPT if name in said}
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
    """The same for `timm.data.resolve_data_config`; a ValueError where it makes no sense."""
    try:
        return {
            **_normalized(said),
            **_resized(said),
            "interpolation": RESAMPLE[int(said.get("resample", 2))],
        }
    except (TypeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"no {FILE} of a model for images: {error}") from error


def _normalized(said: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels from 0 to 255 come to transformers, and from 0 to 1 to timm."""
    full = 255 * (said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said.get("do_normalize", True) and "image_mean" in said:
        mean, std = said["image_mean"], said["image_std"]
    if full <= 0 or min(std) <= 0:
        raise ValueError(f"image_std={list(std)}, rescale_factor: expected numbers above 0")
    return {name: tuple(v / full for v in c) for name, c in (("mean", mean), ("std", std))}


def _resized(said: Mapping[str, Any]) -> dict[str, Any]:
    """The share of an image that is looked at, and whether its sides keep their relation."""
    size, crops = said.get("size", 1), said.get("do_center_crop", False)
    short = size.get("shortest_edge") if isinstance(size, Mapping) else size if crops else None
    edge = short or (size if isinstance(size, int) else size.get("height", 1))
    share = _side(said["crop_size"]) / edge if crops and "crop_size" in said else 1.0
    return {"crop_pct": min(share, 1.0), "crop_mode": "center" if short else "squash"}


def _side(size: Any) -> Any:
    return size if isinstance(size, int) else size["height"]
