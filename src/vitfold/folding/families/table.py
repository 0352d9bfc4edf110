"""What can be folded and what is refused, as a table."""

import importlib
import importlib.util
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import timm

from vitfold.folding.families.hf import HOSTS, MODELS
from vitfold.folding.families.reasons import reason, reason_for

UNDESCRIBED = "no family describes it"


@dataclass(frozen=True)
class Family:
    """The models of one module of a library that are of one class.

    names: as timm registers them; of transformers, the classes that can be loaded.
    reason: why they are refused; None for those that can be folded.
    """

    library: str
    module: str
    kind: str
    names: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Families:
    """What can be folded and what is refused with the libraries that are installed here."""

    folded: tuple[Family, ...]
    refused: tuple[Family, ...]

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"can be folded ({_count(self.folded)} models):",
                *_lines(self.folded),
                f"refused ({_count(self.refused)} models):",
                *_lines(self.refused),
            ]
        )


def _count(families: Iterable[Family]) -> int:
    return sum(len(family.names) for family in families)


def _lines(families: tuple[Family, ...]) -> list[str]:
    rows = [(f.library, f.module, f"{len(f.names):3}", f.reason or f.kind) for f in families]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (zip(row, widths, strict=True) for row in rows)
    return ["  " + "  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in padded]


def tabulate(folds: Callable[[type], bool]) -> Families:
    """All of timm's registry, and what transformers loads to classify images or as a backbone."""
    families = _timm(folds)
    if importlib.util.find_spec("transformers") is not None:
        families += _transformers()
    folded = tuple(family for family in families if family.reason is None)
    return Families(folded, tuple(family for family in families if family.reason is not None))


def _timm(folds: Callable[[type], bool]) -> list[Family]:
    families = dict[tuple[str, str, str | None], list[str]]()
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            kind, why = _judge(name, module, folds)
            families.setdefault((module, kind, why), []).append(name)
    return [Family("timm", *key[:2], tuple(names), key[2]) for key, names in families.items()]


def _judge(name: str, module: str, folds: Callable[[type], bool]) -> tuple[str, str | None]:
    """The class that folds, or the reason; by what the entry point says it makes, if it does."""
    cls = inspect.signature(timm.models.model_entrypoint(name)).return_annotation
    if not isinstance(cls, type) or cls is inspect.Signature.empty:
        return "", reason_for(f"timm.models.{module}") or UNDESCRIBED
    return (cls.__name__, None) if folds(cls) else ("", reason(cls) or UNDESCRIBED)


def _transformers() -> list[Family]:
    folded = [
        Family("transformers", module, trunk, names)
        for (_, _, module, _, trunk), names in (
            (m.split("."), names) for m, names in MODELS.items()
        )
    ]
    described = HOSTS.union(*MODELS.values())
    refused = []
    for kind, names in sorted(_listed().items()):
        left = tuple(name for name in names if name not in described)
        if left:
            why = _hf_reason(kind) or UNDESCRIBED
            refused.append(Family("transformers", kind, "", left, why))
    return folded + refused


def _hf_reason(kind: str) -> str | None:
    """For a type of models, which may lie in a package of another name."""
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    package = f"transformers.models.{auto.model_type_to_module_name(kind)}"
    return reason_for(f"{package}.modeling_{kind.replace('-', '_')}")


def _listed() -> dict[str, tuple[str, ...]]:
    """Classes by type, as transformers lists them; no model is imported."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    listed = defaultdict[str, tuple[str, ...]](tuple)
    for mapping in (
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
    ):
        for kind, names in mapping.items():
            listed[kind] += tuple(names) if isinstance(names, tuple | list) else (names,)
    return {kind: tuple(dict.fromkeys(names)) for kind, names in listed.items()}
