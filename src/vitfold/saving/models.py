"""Models by name: timm's, transformers', packaged ones, saved ones, and those that a function in a
file makes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.errors import PlanError, ShapeError, UnsupportedModel, VitfoldError
from vitfold.saving import fields, foreign, plans, subject
from vitfold.saving.fields import clip
from vitfold.saving.plans import check_saves, save_model
from vitfold.saving.schema import DTYPES
from vitfold.saving.sources import Origin, file, packaged, timm
from vitfold.saving.store import is_on_hub

__all__ = [
    "check_saves",
    "create_model",
    "dataset_of",
    "is_file",
    "is_folded",
    "is_named",
    "origin_of",
    "save_model",
]

HUB = "hf:"


def create_model(
    name: str | os.PathLike[str], *, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """The model of that name, with random weights unless it is pretrained.

    name: a timm model, with or without the tag of its weights; `digits`; `hf:` and a checkpoint on
        the hub or in a directory; the directory of a saved model, which comes with its weights and
        folded as it was, or of a model as timm and transformers save it; `hub:USER/NAME`, such a
        saved model that `vitfold.push` has put on the hub; or `FILE.py:function`, which runs the
        file and takes what the function returns.
    kwargs: for the model's constructor, configuration or function.
    """
    if not isinstance(name, str | os.PathLike):
        raise UnsupportedModel(
            f"{name!r} is no name of a model: give timm's, digits, hf:NAME, a directory or "
            f"{file.FORM}"
        )
    name = str(os.fspath(name))
    try:
        model = _create(name, pretrained, kwargs)
        _check_size(model, kwargs)
        return model
    except VitfoldError:
        raise
    # Constructors and downloads of other libraries raise whatever they like.
    except Exception as error:
        reason = clip(error) or type(error).__name__
        raise UnsupportedModel(f"{clip(name, 100)} cannot be made: {reason}") from error


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if file.parts(name) is not None:
        return file.make(name, pretrained, kwargs)
    if name in packaged.MODELS:
        return _packaged(name, pretrained, kwargs)
    if name.startswith(HUB):
        return foreign.from_transformers(name.removeprefix(HUB), pretrained, kwargs)
    if timm.known(name):
        return timm.SOURCE.build(name, kwargs, pretrained)
    if _holds_plan(name):
        return _load(Path(name), kwargs)
    if os.path.isdir(name):
        return foreign.open_directory(Path(name), kwargs)
    hint = file.hint(name) or timm.hint(name)
    raise UnsupportedModel(f"unknown model {clip(repr(name), 100)}{hint}")


def _packaged(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs:
        raise UnsupportedModel(f"{name} is made in one way: leave out {', '.join(kwargs)}")
    if pretrained:
        return plans.load(packaged.directory(name))
    return packaged.SOURCE.build(name, {}, pretrained=False)


def _load(directory: Path, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a plan; a dense one of timm's may be made with other arguments."""
    if not kwargs or plans.needs_model(directory):
        return plans.load(directory)
    plan = plans.read_plan(directory)
    if plan.method is not None or plan.model.source != "timm":
        raise PlanError(f"{directory} is a saved plan: leave out {', '.join(kwargs)}")
    plans.load(directory)  # all that is checked there
    _, stored, _ = plans.open_plan(directory)
    model = timm.adapted(plan.model.name, plan.model.arguments, stored or {}, kwargs)
    return model.to(DTYPES[plan.model.dtype])


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


def _holds_plan(name: str) -> bool:
    return is_on_hub(name) or os.path.isfile(os.path.join(name, fields.FILE))


def is_file(name: str) -> bool:
    """Whether a name is that of a function in a file; nothing is run."""
    return file.parts(name) is not None


def is_named(name: str) -> bool:
    """Whether timm makes a model of that name, with any number of classes."""
    return timm.known(name)


def is_folded(name: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a model that is saved folded."""
    name = str(os.fspath(name))
    return not is_named(name) and _holds_plan(name) and plans.read_plan(name).method is not None


def origin_of(name: str | os.PathLike[str]) -> Origin | None:
    """The origin of the model of that name, where vitfold saved it; nothing is built."""
    name = str(os.fspath(name))
    if name in packaged.MODELS:
        return Origin(packaged.NAME, name, {})
    if is_named(name):
        return None
    if _holds_plan(name):
        model = plans.read_plan(name).model
        return Origin(model.source, model.name, model.arguments)
    return foreign.origin_of(Path(name))


def dataset_of(model: nn.Module | str | os.PathLike[str]) -> str | None:
    """The dataset in vitfold for a model, or for one by name; None where it has none."""
    if isinstance(model, nn.Module):
        return subject.dataset_of(model)
    name = str(os.fspath(model))
    if not is_named(name) and _holds_plan(name):
        return plans.read_plan(name).model.dataset
    origin = origin_of(name)
    if origin is None or origin.source != packaged.NAME:
        return None
    return packaged.dataset(origin.name)
