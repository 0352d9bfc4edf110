"""Models around a tower that read its tokens: how they are handed fewer."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from torch import nn

from vitfold.errors import FoldError, MethodError, UnsupportedModel
from vitfold.folding.blocks.names import full_name
from vitfold.folding.families import Family
from vitfold.folding.families.base import named
from vitfold.folding.hosts.base import Host
from vitfold.folding.hosts.calls import ENTRIES, enter
from vitfold.folding.hosts.reasons import reason
from vitfold.folding.hosts.registry import host_of, register_host
from vitfold.methods import Base
from vitfold.methods.base import learns

__all__ = [
    "Host",
    "check_method",
    "find_host",
    "put_on",
    "refuse_patched",
    "refuse_replaced",
    "register_host",
    "take_off",
]

for _file in pkgutil.iter_modules(__path__):  # a host registers itself when it is imported
    importlib.import_module(f"{__name__}.{_file.name}")

INSPECTED = ("forward", "get_image_features")
"""Methods whose parameters transformers looks at; those of `generate` cannot be pickled."""

REMEDY = "fold with out='restored', which leaves its visual tokens as many as they are"


def find_host(model: nn.Module, family: Family) -> Host:
    """The host around a trunk in `model`, or an error with the reason why there is none."""
    for module in around(model, family.trunk):
        host = host_of(module)
        if host is not None:
            host.check()
            _check_heads(model, host)
            return host
        why = reason(module)
        if why is not None:
            raise UnsupportedModel(
                f"{full_name(type(module))} cannot be folded with out='reduced': {why}: {REMEDY}"
            )
    raise UnsupportedModel(
        f"{full_name(type(model))} cannot be folded with out='reduced': nothing in it is known to "
        f"hand visual tokens to a language model: {REMEDY}"
    )


def check_method(family: Family, method: Base) -> None:
    """Refuse a method after which nobody can say which tokens are left, and as many of each
    image."""
    name = type(method).__name__
    if method.ragged:
        raise MethodError(
            f"{name} keeps another number of tokens for every image, and a language model takes "
            f"as many of each: give it fixed numbers (vitfold.freeze), or {REMEDY}"
        )
    if family.square > 1 and (method.gridded or method.looks or learns(type(method))):
        side = family.square
        raise MethodError(
            f"{name} cannot go by squares of {side}x{side} patches, which the projector joins: use "
            f"ToMe, or {REMEDY}"
        )


def around(model: nn.Module, trunk: nn.Module) -> Iterator[nn.Module]:
    """The modules that contain a trunk, from the inside out."""
    path = next(name for name, module in model.named_modules() if module is trunk)
    while path:
        path = path.rpartition(".")[0]
        yield model.get_submodule(path)


def _check_heads(model: nn.Module, host: Host) -> None:
    """Refuse a head that reads the whole prompt along what the language model makes of it."""
    for module in around(model, host.model):
        names = set(inspect.signature(module.forward).parameters)
        if not {"input_ids", host.images} <= names or _is_head(module, host):
            continue
        raise UnsupportedModel(
            f"{full_name(type(module))} cannot be folded with out='reduced': it may read what the "
            f"language model makes of every place of the whole prompt: {REMEDY}"
        )


def _is_head(module: nn.Module, host: Host) -> bool:
    return full_name(type(module)) in named(host.heads)


def _entries(model: nn.Module, host: Host) -> Iterator[tuple[nn.Module, str]]:
    """The methods that are overridden: module and name."""
    for entry in ("forward", "get_image_features"):
        yield host.model, entry
    for module in around(model, host.model):
        if _is_head(module, host):
            yield from ((module, entry) for entry in ("forward", "generate"))


def _is_ours(value: Any) -> bool:
    return getattr(value, "func", None) is enter


def _overlaid(model: nn.Module, host: Host) -> list[tuple[nn.Module, str]]:
    return [(m, entry) for m, entry in _entries(model, host) if hasattr(type(m), entry)]


def refuse_patched(model: nn.Module, host: Host) -> None:
    """Refuse a model over whose methods somebody else has laid something."""
    for module, entry in _overlaid(model, host):
        own = module.__dict__.get(entry)
        if own is not None and not _is_ours(own):
            how = " (accelerate.hooks.remove_hook_from_module(model, recurse=True))"
            raise UnsupportedModel(
                f"the {entry} of a {type(module).__name__} is replaced: put back what was there"
                f"{how * hasattr(module, '_hf_hook')}, fold, and then replace it again"
            )


def put_on(model: nn.Module, host: Host) -> None:
    """Lay what hands out fewer visual tokens over the methods of a model and of its heads."""
    for module, entry in _overlaid(model, host):
        own = getattr(type(module), entry).__get__(module)
        overlay = functools.partial(enter, module, host.model, entry)
        if entry in INSPECTED:
            overlay.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
        module.__dict__[entry] = overlay


def take_off(model: nn.Module) -> None:
    """Take that off again."""
    for module in model.modules():
        for entry in ENTRIES:
            if _is_ours(module.__dict__.get(entry)):
                del module.__dict__[entry]


def refuse_replaced(model: nn.Module) -> None:
    """Refuse to take off what somebody has put something over."""
    for module in model.modules():
        if host_of(module) is not None and _half(module):
            raise FoldError(
                f"a method of a {type(module).__name__} was replaced after folding: put back what "
                "was there, then unfold"
            )


def _half(module: nn.Module) -> bool:
    """Whether one of the two methods is ours, and the other is not."""
    ours = {_is_ours(module.__dict__.get(entry)) for entry in ("forward", "get_image_features")}
    return len(ours) == 2
