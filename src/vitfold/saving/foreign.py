"""Models saved by timm, by transformers, or by vitfold before it wrote plans."""

import inspect
import json
import os
import warnings
from pathlib import Path
from typing import Any

import timm as timm_library
import torch
from torch import nn

from vitfold.errors import PlanError, ShapeError, UnsupportedModel
from vitfold.folding.families import find, processor
from vitfold.saving import fields, sources, upgrade, weights
from vitfold.saving.sources import Origin, hf, packaged
from vitfold.saving.store import read_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"

LIMIT = 2**24
"""The most bytes of a configuration."""

IMAGE_CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
"""The class for a checkpoint whose own reads text too, by type of model."""


def open_directory(directory: Path, kwargs: dict[str, Any]) -> nn.Module:
    """The model that is saved in a directory, with its weights."""
    config = _config(directory)
    if "architecture" in config:
        name = f"local-dir:{directory}"
        return timm_library.create_model(name, pretrained=True, **kwargs)  # type: ignore[no-any-return]
    if "model_type" in config:
        return from_transformers(str(directory), True, kwargs)
    if kwargs:
        raise UnsupportedModel(f"{directory} is saved whole: leave out {', '.join(kwargs)}")
    return _from_before(directory)


def from_transformers(checkpoint: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a checkpoint on the hub or in a directory."""
    library = hf.library()
    side = kwargs.pop("img_size", None)
    config = library.AutoConfig.from_pretrained(checkpoint)
    cls = getattr(library, _class(library, config))
    if pretrained:
        model: Any = cls.from_pretrained(checkpoint, use_safetensors=True, **kwargs)
    else:
        model = cls(cls.config_class.from_pretrained(checkpoint, **kwargs))
    images = processor.read(checkpoint)
    processor.put(model.config, images)
    if pretrained and processor.of(model.config) is None:
        warnings.warn(
            f"{checkpoint} has no {processor.FILE}: images are prepared as timm does by default",
            stacklevel=2,
        )
    if side is not None:
        _resize(model, side, images)
    return model  # type: ignore[no-any-return]


def _resize(model: Any, side: int, images: processor.Options | None) -> None:
    """Have images of another size prepared for a model, which has to take them."""
    family = find(model)
    if family.size[1:] == (side, side):
        return
    name = type(family.trunk).__name__
    if not getattr(family, "resizes", False):
        own = "x".join(map(str, family.size[1:]))
        raise ShapeError(f"{name} takes images of {own} alone: leave out --img-size {side}")
    patch = int(family.config.patch_size)  # type: ignore[attr-defined]
    if side % patch:
        raise ShapeError(
            f"images of {side}x{side} do not fit {name}, whose patches are {patch}x{patch}: give "
            "another img_size"
        )
    processor.put(model.config, processor.resized(images, side))


def _class(library: Any, config: Any) -> str:
    """The class that a checkpoint was saved with, or the part of it that reads images."""
    saved = [name for name in config.architectures or () if name not in hf.TWO_TOWERS]
    names = [*saved, IMAGE_CLASSES.get(config.model_type)]
    for name in names:
        if name in hf.CLASSES or _takes_images(getattr(library, str(name), None), config):
            return str(name)
    name = names[0] or config.model_type
    raise UnsupportedModel(f"{name} is no image model that can be folded: see vitfold.families()")


def _takes_images(cls: Any, config: Any) -> bool:
    """Whether a class of transformers is called with images alone, and holds a vision transformer
    that folds."""
    if not isinstance(cls, type) or not cls.__module__.startswith("transformers.models."):
        return False
    make: Any = cls
    parameters = inspect.signature(make.forward).parameters
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind in plain}
    if not needed <= {"self", "pixel_values"} or "pixel_values" not in parameters:
        return False
    if "input_ids" in parameters:
        return False
    try:
        with torch.device("meta"):
            find(make(config))
    # A constructor raises whatever it likes: then it is not made either.
    except Exception:
        return False
    return True


def _config(directory: Path) -> dict[str, Any]:
    """The configuration file of a directory, where some library knows it."""
    try:
        if (directory / CONFIG).stat().st_size > LIMIT:
            raise PlanError(f"{directory / CONFIG} is too large: expected at most {LIMIT} bytes")
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except PlanError:
        raise
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not config.keys() & {"architecture", "model_type", "source"}:
        raise PlanError(
            f"{directory} has neither {fields.FILE} nor a {CONFIG} of timm or transformers"
        )
    if not list(directory.glob("*.safetensors")):
        raise PlanError(f"{directory} has no .safetensors: no other format, as a pickle, is opened")
    return config


def origin_of(directory: Path) -> Origin | None:
    """The origin of a model that vitfold saved before it wrote plans; None for any other."""
    if not os.path.isfile(directory / CONFIG):  # which no name is too long for
        return None
    theirs = _config(directory).keys() & {"architecture", "model_type"}
    return None if theirs else _origin(directory)


def _from_before(directory: Path) -> nn.Module:
    """The model of a directory that names its source and arguments."""
    origin = _origin(directory)
    if not (directory / WEIGHTS).is_file():
        raise PlanError(f"{directory} has no {WEIGHTS}")
    stored = read_tensors(directory, WEIGHTS)
    floating = (tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
    dtype = next(floating, torch.float32)
    weights.check(stored, sources.sketch(origin).to(dtype).state_dict(), WEIGHTS)
    model: nn.Module = sources.build(origin).to(dtype)
    weights.copy(stored, model)
    return model


def _origin(directory: Path) -> Origin:
    """The origin of the model of a directory, from its configuration."""
    try:
        config = fields.parse((directory / CONFIG).read_bytes())
        origin = fields.record("", config, Origin._fields)
        fields.choice("source", origin["source"], (upgrade.EMBEDDED, *sources.ELSEWHERE))
        if origin["source"] == upgrade.EMBEDDED:
            origin |= {"source": packaged.NAME}
        sources.source(origin["source"]).check(origin["name"], origin["arguments"])
    except PlanError as error:  # the fields of a plan are called so
        message = str(error).replace(fields.FILE, CONFIG, 1).replace("model.", "", 1)
        raise PlanError(message) from error
    return Origin(**origin)
