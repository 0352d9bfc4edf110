"""Tables of the models that fold and of those that do not."""

import importlib
import importlib.util
import inspect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import timm

from vitfold.folding.blocks.names import full_name
from vitfold.folding.families.hf import MODELS
from vitfold.folding.families.holds import HOLDS
from vitfold.folding.families.reasons import REASONS, reason, reason_for
from vitfold.folding.families.registry import REGISTRY, family_of
from vitfold.folding.families.timm import TimmFamily

UNDESCRIBED = "no family describes it"

LISTED = ("timm", "transformers")
"""Libraries that list their models."""

ANY = frozenset({"timm_backbone", "timm_wrapper"})
"""Packages of transformers that hold whatever they are told to, and fold if that does."""

TASKS = (
    "BACKBONE",
    "DEPTH_ESTIMATION",
    "DOCUMENT_QUESTION_ANSWERING",
    "IMAGE",
    "IMAGE_CLASSIFICATION",
    "IMAGE_MATTING",
    "IMAGE_TEXT_TO_TEXT",
    "IMAGE_TO_IMAGE",
    "INSTANCE_SEGMENTATION",
    "KEYPOINT_DETECTION",
    "KEYPOINT_MATCHING",
    "MASKED_IMAGE_MODELING",
    "MASK_GENERATION",
    "NORMAL_ESTIMATION",
    "OBJECT_DETECTION",
    "POINTMAP_ESTIMATION",
    "POSE_ESTIMATION",
    "RETRIEVAL",
    "SEMANTIC_SEGMENTATION",
    "TABLE_RECOGNITION",
    "TEXT_RECOGNITION",
    "UNIVERSAL_SEGMENTATION",
    "VIDEO_CLASSIFICATION",
    "VISUAL_QUESTION_ANSWERING",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "ZERO_SHOT_OBJECT_DETECTION",
)
"""What transformers lists models for that see images."""


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
    """All of timm's registry, and what transformers loads for any task with images; the trunks of
    other libraries that have a family."""
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
    described = frozenset[str]().union(*MODELS.values())
    held, refused = [], []
    for (package, kind), names in sorted(_listed().items()):
        left = tuple(name for name in names if name not in described)
        if not left or package in ANY:
            continue
        trunk = HOLDS.get(package)
        if trunk in REGISTRY:
            held.append(Group("transformers", package, trunk.rpartition(".")[2], left))
        else:
            why = _hf_reason(package, kind, trunk) or UNDESCRIBED
            refused.append(Group("transformers", package, "", left, why))
    return folded + _joined(held) + _joined(refused)


def _joined(groups: list[Group]) -> list[Group]:
    """One group for all classes of a package of which the same is said."""
    names = defaultdict[tuple[str, str, str | None], tuple[str, ...]](tuple)
    for group in groups:
        names[group.module, group.kind, group.reason] += group.names
    return [
        Group("transformers", module, kind, tuple(dict.fromkeys(those)), why)
        for (module, kind, why), those in names.items()
    ]


def _hf_reason(package: str, kind: str, trunk: str | None) -> str | None:
    """The reason against a model type of transformers, or against what it holds."""
    module = f"transformers.models.{package}.modeling_{kind.replace('-', '_')}"
    if (why := reason_for(module)) or trunk is None:
        return why
    owner, _, name = trunk.rpartition(".")
    return f"of its {name}, {why}" if (why := reason_for(owner)) else None


def _listed() -> dict[tuple[str, str], tuple[str, ...]]:
    """Classes by package and type, as transformers lists them; no model is imported."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    config = importlib.import_module("transformers.models.auto.configuration_auto")
    tasks = [getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in TASKS]
    kinds = dict.fromkeys(kind for mapping in tasks for kind in mapping)
    kinds |= dict.fromkeys(kind for kind in auto.MODEL_MAPPING_NAMES if _told(config, kind))
    listed = defaultdict[tuple[str, str], tuple[str, ...]](tuple)
    for kind in kinds:
        package = config.model_type_to_module_name(kind)
        for mapping in (auto.MODEL_MAPPING_NAMES, *tasks):
            names = mapping.get(kind, ())
            listed[package, kind] += (names,) if isinstance(names, str) else tuple(names)
    own = {n: p for (p, _), names in listed.items() for n in names if _begins(n, p)}
    return {
        (package, kind): tuple(dict.fromkeys(n for n in names if own.get(n, package) == package))
        for (package, kind), names in listed.items()
    }


def _told(config: Any, kind: str) -> bool:
    """Whether something is known of the package of a type that no task may have; parts of models
    that see no images are left out."""
    if kind.endswith(("text", "text_model", "encoder", "decoder", "audio")):
        return False
    package = config.model_type_to_module_name(kind)
    return package in HOLDS or f"transformers.models.{package}" in REASONS


def _begins(name: str, package: str) -> bool:
    """Whether a class is called by its package: some types load classes of another one."""
    return name.lower().startswith(package.replace("_", ""))
