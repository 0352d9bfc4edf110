"""vitfold: vision transformers with fewer tokens."""

from vitfold.errors import (
    DataError,
    FoldError,
    MethodError,
    MissingExtra,
    PlanError,
    ShapeError,
    TrainError,
    UnsupportedModel,
    VitfoldError,
)
from vitfold.folding.calls import masked
from vitfold.folding.families import Family, families, register_family
from vitfold.folding.fold import Folded, fold, folded, unfold
from vitfold.methods import (
    DFE,
    LGTM,
    LTMP,
    METHODS,
    AViT,
    Drop,
    DynamicViT,
    EViT,
    MergeDrop,
    Method,
    PruneMerge,
    Step,
    ToMe,
    Ward,
    WardCut,
    everywhere,
    register,
)
from vitfold.saving import load, save
from vitfold.saving.models import create_model
from vitfold.tokens.tokenmap import PackedMap, TokenMap
from vitfold.tools.calibrate import calibrate
from vitfold.tools.freeze import freeze
from vitfold.tools.importance import search as _search  # noqa: F401 (binds PruneMerge.search)
from vitfold.tools.measure import flops, peak_memory, throughput
from vitfold.tools.trace import Trace, trace

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
    "Drop",
    "DynamicViT",
    "EViT",
    "LGTM",
    "LTMP",
    "METHODS",
    "MergeDrop",
    "Method",
    "PruneMerge",
    "Step",
    "ToMe",
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
    "flops",
    "peak_memory",
    "throughput",
    # models
    "Family",
    "create_model",
    "families",
    "register_family",
    "load",
    "save",
    # errors
    "DataError",
    "FoldError",
    "MethodError",
    "MissingExtra",
    "PlanError",
    "ShapeError",
    "TrainError",
    "UnsupportedModel",
    "VitfoldError",
]
