"""timm as a source: an architecture, the tag of its weights, and arguments of its constructor."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn

from vitfold.errors import PlanError
from vitfold.saving import fields
from vitfold.saving.sources.base import Source

NAME = r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?"

OVERLAY = "pretrained_cfg_overlay"
"""timm's option for what a model says of itself."""

REFUSED = frozenset(
    (
        *("cache", "cfg", "checkpoint", "config", "dir", "file", "filename", "hf", "hub", "path"),
        *("load", "pretrained", "pruned", "source", "url", "variant", "device", "dtype"),
        *("cls", "fn", "func", "hook", "module", "exportable", "jit", "scriptable", "only"),
    )
)
"""Words in the names of arguments that reach files, addresses or code: a plan sets none of them."""

COUNTS = frozenset(("blocks", "depth", "depths", "layers", "repeats", "stages", "tokens"))
"""Words in the names of what is made one by one."""

MANY, MOST, LONGEST = 256, 2**20, 512
"""The most of these, the largest of other numbers, and the longest list."""


class Timm(Source):
    """An architecture, the tag of its weights, and arguments of its constructor."""

    def identify(self, model: nn.Module) -> str | None:
        """The name of a model, with the tag of its weights."""
        config = getattr(model, "pretrained_cfg", None)
        if not isinstance(config, dict):
            return None
        name, tag = config.get("architecture"), config.get("tag")
        if not isinstance(name, str) or not timm.is_model(name):
            return None
        tagged = f"{name}.{tag}"
        return tagged if tag and tagged in tags(name) else name

    def arguments(self, model: Any) -> dict[str, Any]:
        """The arguments that a model was created with, and changes made to it since."""
        arguments = dict(getattr(model, "_model_args", {}))
        now = {key: getattr(model, key, None) for key in ("num_classes", "in_chans", "global_pool")}
        now["img_size"] = getattr(getattr(model, "patch_embed", None), "img_size", None)
        now[OVERLAY] = _overlay(model) or None
        plain = {k: v for k, v in now.items() if v is not None and not isinstance(v, nn.Module)}
        return arguments | plain

    def check(self, name: object, arguments: object) -> None:
        """Refuse what is not a name, and arguments that a plan may not set: what reaches files,
        addresses or code, and numbers without bounds."""
        fields.text("model.name", name, NAME, "the name of a timm model")
        path = "model.arguments"
        if not isinstance(arguments, dict):
            raise fields.refusal(
                path, arguments, "an object with arguments of the model's constructor"
            )
        for key, value in arguments.items():
            inner = fields.join(path, key)
            if key == OVERLAY:
                fields.options(inner, value, SAYS)
                continue
            _check_name(inner, key)
            for each in (
                fields.items(inner, value, 0, LONGEST) if isinstance(value, list) else [value]
            ):
                _check_value(inner, each, MANY if COUNTS & set(key.split("_")) else MOST)

    def build(self, name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
        """The model as timm creates it."""
        if not known(name):
            raise PlanError(
                f"{fields.FILE}: model.name={name!r}: timm has no such model{hint(name)}"
            )
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
        return model


def tags(name: str) -> list[str]:
    """The names of an architecture with the tags of all its weights."""
    return list(timm.models.get_arch_pretrained_cfgs(name))


def _overlay(model: Any) -> dict[str, Any]:
    """The part of a model's pretrained config that differs from timm's."""
    config, name = getattr(model, "pretrained_cfg", None) or {}, SOURCE.identify(model)
    usual = timm.get_pretrained_cfg(name) if name else None
    if usual is None:
        return {}
    return {
        key: config[key]
        for key in SAYS
        if config.get(key) is not None and _listed(config[key]) != _listed(getattr(usual, key))
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_name(path: str, key: str) -> None:
    words = set(key.removeprefix("drop_path_").split("_"))
    if not fields.matches(key, "[a-z][a-z0-9_]{0,63}") or words & REFUSED:
        raise PlanError(
            f"{fields.FILE}: {fields.clip(path)}: a plan sets no files, addresses or code: leave "
            "it out"
        )


def _check_value(path: str, value: object, most: int) -> None:
    if isinstance(value, str):
        _word(path, value)
    elif isinstance(value, float):
        fields.number(path, value, -1e9, 1e9)
    elif value is not None and not isinstance(value, bool):
        fields.integer(path, value, -most, most)


def adapted(
    name: str, arguments: dict[str, Any], stored: Mapping[str, Tensor], changes: dict[str, Any]
) -> nn.Module:
    """The model with other arguments than it was saved with, and as much of its weights as fits
    them: timm resizes what depends on the size of images, and leaves out a head of other classes.

    changes: the other arguments.
    """
    overlay = arguments.get(OVERLAY, {}) | changes.get(OVERLAY, {})
    classes = arguments.get("num_classes", timm.get_pretrained_cfg(name).num_classes)
    source = {"state_dict": dict(stored), "num_classes": classes}
    whole = arguments | changes | {OVERLAY: overlay | source}
    model: Any = timm.create_model(name, pretrained=True, **whole)
    del model.pretrained_cfg["state_dict"]
    return model  # type: ignore[no-any-return]


def known(name: str) -> bool:
    """Whether timm has a model of that name, with the tag where one is given."""
    architecture, _, tag = name.partition(".")
    return bool(timm.is_model(architecture)) and (not tag or name in tags(architecture))


def hint(name: str) -> str:
    """`" (did you mean 'vit_tiny_patch16_224'?)"`: the known name that is nearest."""
    architecture = name[:100].partition(".")[0]
    names = tags(architecture) if timm.is_model(architecture) else timm.list_models()
    close = difflib.get_close_matches(name[:100], names or [architecture], n=1, cutoff=0.0)
    return f" (did you mean {close[0]!r}?)"


def _word(path: str, value: object) -> str:
    return fields.text(path, value, "[A-Za-z0-9_]{0,64}", "a word")


def _channels(path: str, value: object) -> None:
    """A number for every channel."""
    for index, number in enumerate(fields.items(path, value, 1, 512)):
        fields.number(f"{path}[{index}]", number, -1e6, 1e6)


def _size(path: str, value: object) -> None:
    """Channels, height and width."""
    for index, number in enumerate(fields.items(path, value, 3, 3)):
        fields.integer(f"{path}[{index}]", number, 1, 2**14)


SAYS: dict[str, Callable[[str, object], object]] = {
    "mean": _channels,
    "std": _channels,
    "crop_pct": partial(fields.number, least=0, most=1),
    "crop_mode": _word,
    "interpolation": _word,
    "input_size": _size,
    "tag": _word,
}
"""What a model says of its weights, and of the images that it takes."""

SOURCE = Timm()
