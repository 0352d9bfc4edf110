"""Methods by name: how they are registered, and made from a name and options."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vitfold.errors import MethodError, nearest
from vitfold.methods.base import RAMP, Base, Method, learns
from vitfold.methods.plugins import METHODS_GROUP, OWN, load_plugins

METHODS: dict[str, type[Base]] = {}
"""The registered methods by name."""

M = TypeVar("M", bound=Base)


def register(name: str) -> Callable[[type[M]], type[M]]:
    """Make a method known by name: in `fold(model, name)`, plans and the command line."""
    if not name or name != name.lower():
        raise MethodError(f"a method called {name!r}: give a name of small letters")

    def enter(method: type[M]) -> type[M]:
        before = METHODS.get(name, method)
        if (before.__module__, before.__qualname__) != (method.__module__, method.__qualname__):
            raise MethodError(f"{name!r} is a {before.__name__} already: give another name")
        method.name = name
        METHODS[name] = method
        return method

    return enter


def ready() -> list[str]:
    """The names of the methods that reach a share of the FLOPs without training."""
    return sorted(
        name
        for name, kind in METHODS.items()
        if issubclass(kind, Method) and kind.by_share and not learns(kind)
    )


def named(name: object) -> type[Base]:
    """The method of that name, in letters of any size."""
    if not isinstance(name, str) or not known(name.lower()):
        raise MethodError(f"unknown method {name!r}{nearest(str(name).lower(), METHODS)}{OWN}")
    return METHODS[name.lower()]


def known(name: str) -> bool:
    """Whether there is a method of that name, if need be in another package that is installed."""
    if name not in METHODS:
        load_plugins(METHODS_GROUP)
    return name in METHODS


def create_method(name: str, options: Mapping[str, Any] = types.MappingProxyType({})) -> Base:
    """The method of that name with these options; unknown ones are refused by name."""
    method = named(name)
    known = [f.name for f in dataclasses.fields(method)]
    for option in options:
        if option not in known:
            hint = nearest(option, known)
            if option in method.sought:
                hint = f": give it to {method.__name__}.{method.command}(model, loader, ...)"
            raise MethodError(f"{method.__name__} has no option {option!r}{hint}")
    return method(**options)


def from_json(data: object) -> Base:
    """The method that `to_json` described; what that never writes is refused."""
    if not isinstance(data, dict):
        raise MethodError(f"{data!r}: expected an object with a name and options")
    options = dict(data)
    name = options.pop("name", None)
    if not isinstance(name, str) or not known(name):
        raise MethodError(f"unknown method {name!r}{nearest(str(name), METHODS)}{OWN}")
    for option, value in options.items():
        if value is None:
            raise MethodError(f"{option}=None: expected a value; leave out what is not set")
    if isinstance(ramp := options.get("r"), dict):
        if set(ramp) != set(RAMP):
            raise MethodError(f"r={ramp!r}: expected an int, a list, or {' and '.join(RAMP)}")
        options["r"] = tuple(ramp[part] for part in RAMP)
    return create_method(name, options)
