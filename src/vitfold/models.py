"""Models by name: timm's, Hugging Face's, the one that comes with vitfold, and saved ones."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import timm as timm_library
from timm.models import save_for_hf
from torch import nn

from vitfold.errors import PlanError, UnsupportedModel, VitfoldError
from vitfold.fold import folds
from vitfold.plan import fields, load, save, sources
from vitfold.plan.fields import clip
from vitfold.plan.sources import digits, hf, timm

HUB, LOCAL = "hf:", "local-dir:"

IMAGE_CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
"""The class for a checkpoint whose own reads text too, by type of model."""


def create_model(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The model of that name, with random weights unless it is pretrained.

    name: a timm model, with or without the tag of its weights; `digits`; `hf:` and a checkpoint on
        the hub or in a directory; the directory of a saved plan, which comes folded and as it was,
        or of a model as timm and transformers save it, which comes with its weights.
    kwargs: for the model's constructor or configuration.
    """
    known = name == digits.NAME or name.startswith(HUB) or timm.known(name)
    if not known and os.path.isfile(os.path.join(name, fields.FILE)):
        return _load(name, kwargs)
    if not known and os.path.isdir(name):
        known, name, pretrained = True, _saved(Path(name)), True
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
    if name.startswith(LOCAL):
        return timm_library.create_model(name, pretrained=pretrained, **kwargs)  # type: ignore[no-any-return]
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


def is_named(name: str) -> bool:
    """Whether timm makes a model of that name, with any number of classes."""
    return timm.known(name)


def save_model(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Save a model with its weights, in a directory from which `create_model` makes it again: as a
    plan where it is folded, else as its own library does."""
    directory = Path(directory)
    if folds(model):
        save(model, directory, backbone=True)
        return
    part = directory.with_name(f".{directory.name}.part")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(model, part)
        for file in part.iterdir():  # each file is there whole, the one before or the new one
            os.replace(file, directory / file.name)
    except Exception as error:
        raise PlanError(f"{directory} cannot be written: {clip(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(model: Any, directory: Path) -> None:
    if sources.identify(model)[0] == "transformers":
        model.save_pretrained(directory)
    else:
        save_for_hf(model, directory, safe_serialization=True)


def _saved(directory: Path) -> str:
    """The name under which a library makes the model that it saved in a directory."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or not (config.keys() & {"architecture", "model_type"}):
        raise PlanError(
            f"{directory} has neither {fields.FILE} nor a config.json of timm or transformers"
        )
    if not list(directory.glob("*.safetensors")):
        raise PlanError(f"{directory} has no .safetensors: no other format, as a pickle, is opened")
    return f"{LOCAL if 'architecture' in config else HUB}{directory}"


def _load(directory: str, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs:
        raise PlanError(f"{directory} is a saved plan: leave out {', '.join(kwargs)}")
    return load(directory)
