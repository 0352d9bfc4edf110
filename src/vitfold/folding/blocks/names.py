"""Classes by name, so that no library is imported before a model of it is there; and arguments."""

from collections.abc import Mapping, Sequence
from typing import Any


def full_name(cls: type) -> str:
    """`package.module.Class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def maker(cls: type, method: str = "forward") -> str:
    """The full name of the class, of this one and its bases, that defines a method."""
    return next((full_name(c) for c in cls.__mro__ if method in c.__dict__), full_name(cls))


def by_name(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, all by the names that they have in their order."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
