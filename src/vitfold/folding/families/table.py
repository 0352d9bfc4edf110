"""Tables of the models that fold and of those that do not."""

import importlib
import importlib.util
import inspect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import timm

from vitfold.folding.blocks.names import full_name
from vitfold.folding.families.hf import MODELS
from vitfold.folding.families.reasons import reason, reason_for
from vitfold.folding.families.registry import REGISTRY, family_of
from vitfold.folding.families.timm import TimmFamily

UNDESCRIBED = "no family describes it"

LISTED = ("timm", "transformers")
"""Libraries that list their models."""

HOSTS = frozenset(
    {
        "TimmBackbone",
        "TimmWrapperForImageClassification",
        "TimmWrapperModel",
        "ShieldGemma2ForImageClassification",
    }
)
"""Classes of transformers that hold a model of another family, and fold if that does."""


@dataclass(frozen=True)
class Group:
    """The models of one module of a library that share a class.

    names: as timm registers them; of transformers, the classes that can be loaded; of others none.
    reason: why they are refused; None for those that can be folded.
    """

    library: str
    module: str
    kind: str
    names: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Families:
    """The models that fold with the libraries installed here, and the others with a reason."""

    folded: tuple[Group, ...]
    refused: tuple[Group, ...]

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"can be folded ({_count(self.folded)} models):",
                *_lines(self.folded),
                f"refused ({_count(self.refused)} models):",
                *_lines(self.refused),
            ]
        )


def _count(families: Iterable[Group]) -> int:
    return sum(len(family.names) for family in families)


def _lines(families: tuple[Group, ...]) -> list[str]:
    rows = [(f.library, f.module, f"{len(f.names):3}", f.reason or f.kind) for f in families]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (zip(row, widths, strict=True) for row in rows)
    return ["  " + "  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in padded]


def tabulate() -> Families:
    """All of timm's registry, and what transformers loads to classify images or as a backbone; the
    trunks of other libraries that have a family."""
    groups = _timm()
    if importlib.util.find_spec("transformers") is not None:
        groups += _transformers()
    folded = tuple(group for group in groups + _others() if group.reason is None)
    return Families(folded, tuple(group for group in groups if group.reason is not None))


def _others() -> list[Group]:
    names = [name for name in sorted(REGISTRY) if name.partition(".")[0] not in LISTED]
    parts = [(name.partition(".")[0], *name.partition(".")[2].rpartition(".")) for name in names]
    return [Group(library, module, kind, ()) for library, module, _, kind in parts]


def _timm() -> list[Group]:
    groups = dict[tuple[str, str, str | None], list[str]]()
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            kind, why = _verdict(name, module)
            groups.setdefault((module, kind, why), []).append(name)
    return [Group("timm", *key[:2], tuple(names), key[2]) for key, names in groups.items()]


def _verdict(name: str, module: str) -> tuple[str, str | None]:
    """The class that folds, or the reason; by what the entry point says it makes, if it does."""
    cls = inspect.signature(timm.models.model_entrypoint(name)).return_annotation
    if not isinstance(cls, type) or cls is inspect.Signature.empty:
        return "", reason_for(f"timm.models.{module}") or UNDESCRIBED
    folds = family_of(cls) or any(full_name(cls) in family.hosts for family in _timm_families())
    return (cls.__name__, None) if folds else ("", reason(cls) or UNDESCRIBED)


def _timm_families() -> list[type[TimmFamily]]:
    return [family for family in REGISTRY.values() if issubclass(family, TimmFamily)]


def _transformers() -> list[Group]:
    folded = [
        Group("transformers", module, trunk, names)
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
            refused.append(Group("transformers", kind, "", left, why))
    return folded + refused


def _hf_reason(kind: str) -> str | None:
    """The reason against a model type of transformers, whose package may have another name."""
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
