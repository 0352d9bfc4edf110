"""Models by name: timm's, Hugging Face's, the one that comes with vitfold, and saved ones."""

import functools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm as timm_library
import torch
from timm.models import save_for_hf
from torch import nn

from vitfold.errors import PlanError, ShapeError, UnsupportedModel, VitfoldError
from vitfold.files import readable, writing
from vitfold.folding.calls import folds
from vitfold.folding.families import processor
from vitfold.saving import fields, load, save, sources, store, weights
from vitfold.saving.fields import clip
from vitfold.saving.schema import decode
from vitfold.saving.sources import digits, hf, segmenter, timm
from vitfold.segment import Segmenter

HUB, LOCAL, OURS = "hf:", "local-dir:", "vitfold-dir:"

OWN = (digits.NAME, segmenter.NAME)
"""Where models come from that are saved as vitfold makes them."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"

LIMIT = 2**24
"""The most bytes of a configuration."""

IMAGE_CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
"""The class for a checkpoint whose own reads text too, by type of model."""


def create_model(
    name: str | os.PathLike[str], *, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """The model of that name, with random weights unless it is pretrained.

    name: a timm model, with or without the tag of its weights; `digits`; `hf:` and a checkpoint on
        the hub or in a directory; the directory of a saved plan, which comes folded and as it was,
        or of a model as timm and transformers save it, which comes with its weights.
    kwargs: for the model's constructor or configuration.
    """
    if not isinstance(name, str | os.PathLike):
        raise UnsupportedModel(
            f"{name!r} is no name of a model: give timm's, digits, hf:NAME or a directory"
        )
    name = os.fspath(name)
    known = name == digits.NAME or name.startswith(HUB) or timm.known(name)
    if not known and _holds_plan(name):
        return _load(name, kwargs)
    if not known and os.path.isdir(name):
        known, name, pretrained = True, _saved(Path(name)), True
    if not known:
        raise UnsupportedModel(f"unknown model {clip(repr(name), 100)}{timm.hint(name)}")
    try:
        model = _build(name, kwargs, pretrained)
        _check_size(model, kwargs)
        return model
    except VitfoldError:
        raise
    # Constructors and downloads of other libraries raise whatever they like.
    except Exception as error:
        reason = clip(error) or type(error).__name__
        raise UnsupportedModel(f"{name} cannot be made: {reason}") from error


def _check_size(model: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse images that patches do not fill, which a model says only when it gets some."""
    embed = getattr(model, "patch_embed", None)
    size, patch = (getattr(embed, name, None) for name in ("img_size", "patch_size"))
    if "img_size" not in kwargs or not (size and patch) or getattr(embed, "dynamic_img_pad", False):
        return
    if any(side % part for side, part in zip(size, patch, strict=True)):
        raise ShapeError(
            f"images of {size[0]}x{size[1]} do not fit {type(model).__name__}, whose patches are "
            f"{patch[0]}x{patch[1]}: give another img_size"
        )


def _build(name: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    if name.startswith(HUB):
        return _build_hf(name.removeprefix(HUB), kwargs, pretrained)
    if name.startswith(LOCAL):
        return timm_library.create_model(name, pretrained=pretrained, **kwargs)  # type: ignore[no-any-return]
    if name.startswith(OURS):
        return _build_ours(Path(name.removeprefix(OURS)), kwargs)
    if name == digits.NAME and kwargs:
        raise UnsupportedModel(f"{name} is made in one way: leave out {', '.join(kwargs)}")
    build = digits.build if name == digits.NAME else timm.build
    return build(name, kwargs, pretrained)


def _build_hf(checkpoint: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    library = hf.library()
    config = library.AutoConfig.from_pretrained(checkpoint)
    cls = getattr(library, _class(config))
    if pretrained:
        model: Any = cls.from_pretrained(checkpoint, use_safetensors=True, **kwargs)
    else:
        model = cls(cls.config_class.from_pretrained(checkpoint, **kwargs))
    said = processor.read(checkpoint)
    processor.put(model.config, said)
    if pretrained and processor.of(model.config) is None:
        warnings.warn(
            f"{checkpoint} has no {processor.FILE}: images are prepared as timm does by default",
            stacklevel=2,
        )
    return model  # type: ignore[no-any-return]


def _class(config: Any) -> str:
    """The class that a checkpoint was saved with, or the part of it that reads images."""
    saved = [name for name in config.architectures or () if name not in hf.TWO_TOWERS]
    names = [*saved, IMAGE_CLASSES.get(config.model_type)]
    for name in names:
        if name in hf.CLASSES:
            return str(name)
    given = names[0] or config.model_type
    raise UnsupportedModel(f"{given} is no image model that can be folded: see vitfold.families()")


def create_segmenter(
    encoder: str, classes: int, decoder: str = "mask", *, pretrained: bool = False, **kwargs: Any
) -> Segmenter:
    """A segmenter around the encoder of that name, with a decoder that is not trained yet.

    encoder: a timm model, or a directory of one with its weights; the head of a classifier goes.
    kwargs: for the encoder; `img_size` is the window.
    """
    if encoder == digits.NAME or encoder.startswith(HUB) or _holds_plan(encoder):
        raise UnsupportedModel(
            f"{clip(encoder, 100)} cannot be an encoder: give a timm model, or the directory of "
            "one that is not folded"
        )
    given = {"num_classes": 0, **kwargs}
    return Segmenter(create_model(encoder, pretrained=pretrained, **given), classes, decoder)


def _holds_plan(name: str) -> bool:
    return os.path.isfile(os.path.join(name, fields.FILE))


def is_named(name: str) -> bool:
    """Whether timm makes a model of that name, with any number of classes."""
    return timm.known(name)


def saved_classes(name: str) -> int | None:
    """How many classes the segmenter in a directory has; None where there is none."""
    made = _made(name)
    if made is None or made.source != segmenter.NAME:
        return None
    return int(made.arguments["classes"])


def is_embedded(name: str) -> bool:
    """Whether it is the model that comes with vitfold, or what was made of it."""
    made = _made(name)
    return name == digits.NAME or (made is not None and made.source == digits.NAME)


def _made(name: str) -> sources.Origin | None:
    """What makes the model in a directory, where vitfold saved it."""
    if is_named(name) or not os.path.isdir(name):
        return None
    directory = Path(name)
    if (directory / fields.FILE).is_file():
        made = decode(store.read(directory)).model
        return sources.Origin(made.source, made.name, made.arguments)
    if not (directory / CONFIG).is_file() or not _saved(directory).startswith(OURS):
        return None
    return _origin(directory)


def save_model(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Save a model with its weights, in a directory from which `create_model` makes it again: as a
    plan where it is folded, else as its own library does."""
    directory = Path(directory)
    if folds(model):
        save(model, directory, backbone=True)
        return
    write = _writer(model)
    part = directory.with_name(f".{directory.name}.part")
    try:
        with writing(directory, PlanError, Exception):
            directory.mkdir(parents=True, exist_ok=True)
            write(part)
            made = [file.name for file in part.iterdir()]
            for name in made:  # each file is there whole, the one before or the new one
                readable(part / name)
                os.replace(part / name, directory / name)
            for name in {fields.FILE, processor.FILE}.difference(made):  # of another model, once
                (directory / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_saves(model: nn.Module) -> None:
    """Refuse a model that `save_model` cannot save: before it is trained, not after."""
    if not folds(model):
        _writer(model)


def _writer(model: Any) -> Callable[[Path], None]:
    """What writes a model that is not folded to a directory."""
    kind = type(model).__name__
    source = sources.identify(model)[0]
    if source == "transformers":
        return functools.partial(_write_hf, model)
    if source in OWN or isinstance(model, Segmenter):
        origin = sources.describe(model)
        if origin.source not in OWN:
            raise PlanError(
                f"the encoder of this {kind} cannot be made by name and arguments: give a timm "
                "model with plain ones"
            )
        return functools.partial(_write_ours, model, origin)
    if not hasattr(model, "pretrained_cfg"):
        raise PlanError(
            f"this {kind} cannot be saved, as it is not known by a name: make it by "
            "vitfold.create_model, timm.create_model or from_pretrained"
        )
    return functools.partial(_write_timm, model)


def _write_hf(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    if said := processor.of(model.config):
        (directory / processor.FILE).write_text(json.dumps(said, indent=2) + "\n")


def _write_ours(model: nn.Module, origin: sources.Origin, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    weights.write(model.state_dict(), directory / WEIGHTS)
    made = json.dumps(origin._asdict(), indent=2)
    (directory / CONFIG).write_text(made + "\n", encoding="utf-8")


def _write_timm(model: Any, directory: Path) -> None:
    save_for_hf(model, directory, safe_serialization=True)


def _saved(directory: Path) -> str:
    """The name under which a library makes the model that it saved in a directory."""
    try:
        if (directory / CONFIG).stat().st_size > LIMIT:
            raise PlanError(f"{directory / CONFIG} is too large: expected at most {LIMIT} bytes")
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    kinds = {"architecture": LOCAL, "model_type": HUB, "source": OURS}
    known = [way for key, way in kinds.items() if isinstance(config, dict) and key in config]
    if not known:
        raise PlanError(
            f"{directory} has neither {fields.FILE} nor a {CONFIG} of timm or transformers"
        )
    if not list(directory.glob("*.safetensors")):
        raise PlanError(f"{directory} has no .safetensors: no other format, as a pickle, is opened")
    return f"{known[0]}{directory}"


def _build_ours(directory: Path, kwargs: dict[str, Any]) -> nn.Module:
    """A model of our own that `save_model` saved."""
    if kwargs:
        raise UnsupportedModel(f"{directory} is saved whole: leave out {', '.join(kwargs)}")
    made = _origin(directory)
    if not (directory / WEIGHTS).is_file():
        raise PlanError(f"{directory} has no {WEIGHTS}")
    stored = weights.read(directory, WEIGHTS)
    floating = [tensor.dtype for tensor in stored.values() if tensor.is_floating_point()]
    dtype = floating[0] if floating else torch.float32
    blank = sources.sketch(*made).to(dtype)
    weights.check(stored, blank.state_dict(), WEIGHTS)
    model = sources.SOURCES[made.source].build(made.name, made.arguments, False).to(dtype)
    weights.copy(stored, model)
    return model


def _origin(directory: Path) -> sources.Origin:
    """What makes the model of our own in a directory."""
    try:
        config = fields.parse((directory / CONFIG).read_bytes())
        made = fields.record("", config, sources.Origin._fields)
        fields.choice("source", made["source"], OWN)
        sources.SOURCES[made["source"]].check(made["name"], made["arguments"])
    except PlanError as error:  # the fields of a plan are called so
        told = str(error).replace(fields.FILE, CONFIG, 1).replace("model.", "", 1)
        raise PlanError(told) from error
    return sources.Origin(**made)


def _load(directory: str, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs:
        raise PlanError(f"{directory} is a saved plan: leave out {', '.join(kwargs)}")
    return load(directory)
