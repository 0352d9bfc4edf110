"""vitfold: vision transformers with fewer tokens.

Names are imported when they are first used, so that `import vitfold` takes no time of its own and
the command line answers before torch is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitfold.errors import (
        DataError,
        ExportError,
        FoldError,
        MethodError,
        MissingExtra,
        PlanError,
        ShapeError,
        TrainError,
        TuneError,
        UnsupportedModel,
        VitfoldError,
    )
    from vitfold.exporting.export import export
    from vitfold.folding.calls import masked
    from vitfold.folding.families import Family, families, register_family
    from vitfold.folding.fold import Folded, fold, folded, unfold
    from vitfold.lab.tuning.result import Tuned
    from vitfold.lab.tuning.tune import tune
    from vitfold.methods import (
        DFE,
        LGTM,
        LTMP,
        MCTF,
        METHODS,
        AViT,
        DiffRate,
        Drop,
        DynamicViT,
        EViT,
        Fisher,
        FisherCut,
        MergeDrop,
        Method,
        PiToMe,
        PruneMerge,
        RunLength,
        Step,
        ToMe,
        ToMeAround,
        Ward,
        WardCut,
        everywhere,
        register,
    )
    from vitfold.saving import load, save
    from vitfold.saving.hub import push
    from vitfold.saving.models import create_model
    from vitfold.serve.embed import embed
    from vitfold.serve.manifest import Embedded
    from vitfold.tokens.tokenmap import PackedMap, TokenMap
    from vitfold.tools.calibrate import calibrate
    from vitfold.tools.fidelity import Fidelity, fidelity
    from vitfold.tools.freeze import freeze
    from vitfold.tools.measure import flops, peak_memory, throughput
    from vitfold.tools.trace import Trace, trace
    from vitfold.tools.validate import validate

__version__ = "0.1.0"

__all__ = [
    # on and off
    "calibrate",
    "Folded",
    "fold",
    "folded",
    "freeze",
    "masked",
    "unfold",
    # methods
    "AViT",
    "DFE",
    "DiffRate",
    "Drop",
    "DynamicViT",
    "EViT",
    "Fisher",
    "FisherCut",
    "LGTM",
    "LTMP",
    "MCTF",
    "METHODS",
    "MergeDrop",
    "Method",
    "PiToMe",
    "PruneMerge",
    "RunLength",
    "Step",
    "ToMe",
    "ToMeAround",
    "Ward",
    "WardCut",
    "everywhere",
    "register",
    # seeing
    "PackedMap",
    "TokenMap",
    "Trace",
    "trace",
    # measuring
    "Fidelity",
    "fidelity",
    "flops",
    "peak_memory",
    "throughput",
    "validate",
    # choosing
    "Tuned",
    "tune",
    # models
    "Family",
    "create_model",
    "families",
    "register_family",
    "export",
    "load",
    "push",
    "save",
    # corpora
    "Embedded",
    "embed",
    # errors
    "DataError",
    "ExportError",
    "FoldError",
    "MethodError",
    "MissingExtra",
    "PlanError",
    "ShapeError",
    "TrainError",
    "TuneError",
    "UnsupportedModel",
    "VitfoldError",
]

PLACES = {
    "vitfold.errors": (
        "DataError",
        "ExportError",
        "FoldError",
        "MethodError",
        "MissingExtra",
        "PlanError",
        "ShapeError",
        "TrainError",
        "TuneError",
        "UnsupportedModel",
        "VitfoldError",
    ),
    "vitfold.exporting.export": ("export",),
    "vitfold.folding.calls": ("masked",),
    "vitfold.folding.families": (
        "Family",
        "families",
        "register_family",
    ),
    "vitfold.folding.fold": (
        "Folded",
        "fold",
        "folded",
        "unfold",
    ),
    "vitfold.lab.tuning.result": ("Tuned",),
    "vitfold.lab.tuning.tune": ("tune",),
    "vitfold.methods": (
        "DFE",
        "LGTM",
        "LTMP",
        "MCTF",
        "METHODS",
        "AViT",
        "DiffRate",
        "Drop",
        "DynamicViT",
        "EViT",
        "Fisher",
        "FisherCut",
        "MergeDrop",
        "Method",
        "PiToMe",
        "RunLength",
        "Step",
        "ToMe",
        "ToMeAround",
        "Ward",
        "WardCut",
        "everywhere",
        "register",
    ),
    "vitfold.saving": (
        "load",
        "save",
    ),
    "vitfold.saving.hub": ("push",),
    "vitfold.saving.models": ("create_model",),
    "vitfold.serve.embed": ("embed",),
    "vitfold.serve.manifest": ("Embedded",),
    "vitfold.tokens.tokenmap": (
        "PackedMap",
        "TokenMap",
    ),
    "vitfold.tools.calibrate": ("calibrate",),
    "vitfold.tools.fidelity": (
        "Fidelity",
        "fidelity",
    ),
    "vitfold.tools.freeze": ("freeze",),
    # It gives PruneMerge its search.
    "vitfold.tools.prune_merge.search": ("PruneMerge",),
    "vitfold.tools.measure": (
        "flops",
        "peak_memory",
        "throughput",
    ),
    "vitfold.tools.trace": (
        "Trace",
        "trace",
    ),
    "vitfold.tools.validate": ("validate",),
}
"""Where public names are defined."""

HOMES = {name: module for module, names in PLACES.items() for name in names}

ROOMS = (
    "data",
    "exporting",
    "folding",
    "lab",
    "methods",
    "saving",
    "segment",
    "serve",
    "tokens",
    "tools",
    "train",
)
"""Packages that may be reached from here as attributes."""


if not TYPE_CHECKING:  # for a type checker the names above are all there is

    def __getattr__(name: str) -> Any:
        """A public name or a room, imported at its first use."""
        if name in ROOMS:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *ROOMS})
