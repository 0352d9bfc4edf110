"""The registered families, by the classes of their trunks."""

from typing import TypeVar

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.names import full_name
from vitfold.folding.families.base import Family, named

FamilyT = TypeVar("FamilyT", bound=type[Family])

REGISTRY: dict[str, type[Family]] = {}
"""Families by the full names of the classes of trunks that they describe."""


def register_family(family: FamilyT) -> FamilyT:
    """Make models of a family foldable; refused where one of its classes has a family already.

    A decorator of a subclass of `vitfold.Family`, or called with one.
    """
    if not isinstance(family, type) or not issubclass(family, Family):
        raise UnsupportedModel(f"{family!r} is no family: give a subclass of vitfold.Family")
    for field in ("trunks", "block_types", "attention_types"):
        _check_types(family, field)
    if not family.trunks:
        raise UnsupportedModel(f"{family.__name__}.trunks is empty: give the classes of trunks")
    for name in named(family.trunks):
        before = REGISTRY.get(name, family)
        if full_name(before) != full_name(family):
            raise UnsupportedModel(
                f"{name} is described by {full_name(before)} already: leave it out of "
                f"{family.__name__}.trunks"
            )
    REGISTRY.update(dict.fromkeys(named(family.trunks), family))
    return family


def _check_types(family: type[Family], field: str) -> None:
    types = getattr(family, field)
    if not isinstance(types, tuple) or not all(isinstance(t, str | type) for t in types):
        raise UnsupportedModel(
            f"{family.__name__}.{field}={types!r}: expected a tuple of classes, or of their names"
        )


def family_of(cls: type) -> type[Family] | None:
    """The family of a class of trunks, or of the nearest of its bases."""
    names = (full_name(base) for base in cls.__mro__)
    return next((REGISTRY[name] for name in names if name in REGISTRY), None)
