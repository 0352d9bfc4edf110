"""Models by name: timm's, Hugging Face's, the one that comes with vitfold, and saved ones."""

import os
from typing import Any

from torch import nn

from vitfold.errors import PlanError, UnsupportedModel, VitfoldError
from vitfold.plan import load
from vitfold.plan.fields import clip
from vitfold.plan.sources import digits, hf, timm

HUB = "hf:"

IMAGE_CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
"""The class for a checkpoint whose own reads text too, by type of model."""


def create_model(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The model of that name, with random weights unless it is pretrained.

    name: a timm model, with or without the tag of its weights; `digits`; `hf:` and a checkpoint on
        the hub or in a directory; the directory of a saved plan, which comes folded and as it was.
    kwargs: for the model's constructor or configuration.
    """
    known = name == digits.NAME or name.startswith(HUB) or timm.known(name)
    if not known and os.path.isdir(name):
        return _load(name, kwargs)
    if not known:
        raise UnsupportedModel(f"unknown model {clip(repr(name), 100)}{timm.hint(name)}")
    try:
        return _build(name, kwargs, pretrained)
    except VitfoldError:
        raise
    # Constructors and downloads of other libraries raise whatever they like.
    except Exception as error:
        reason = clip(error) or type(error).__name__
        raise UnsupportedModel(f"{name} cannot be made: {reason}") from error


def _build(name: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    if name.startswith(HUB):
        return _build_hf(name.removeprefix(HUB), kwargs, pretrained)
    if name == digits.NAME and kwargs:
        raise UnsupportedModel(f"{name} is made in one way: leave out {', '.join(kwargs)}")
    build = digits.build if name == digits.NAME else timm.build
    return build(name, kwargs, pretrained)


def _build_hf(checkpoint: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    library = hf.library()
    config = library.AutoConfig.from_pretrained(checkpoint)
    cls = getattr(library, _class(config))
    if pretrained:
        return cls.from_pretrained(checkpoint, **kwargs)  # type: ignore[no-any-return]
    return cls(cls.config_class.from_pretrained(checkpoint, **kwargs))  # type: ignore[no-any-return]


def _class(config: Any) -> str:
    """The class that a checkpoint was saved with, or the part of it that reads images."""
    saved = [name for name in config.architectures or () if name not in hf.TWO_TOWERS]
    names = [*saved, IMAGE_CLASSES.get(config.model_type)]
    for name in names:
        if name in hf.CLASSES:
            return str(name)
    given = names[0] or config.model_type
    raise UnsupportedModel(f"{given} is no image model that can be folded: see vitfold.families()")


def _load(directory: str, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs:
        raise PlanError(f"{directory} is a saved plan: leave out {', '.join(kwargs)}")
    return load(directory)
