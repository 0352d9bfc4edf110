"""vitfold: vision transformers with fewer tokens."""

from vitfold.calibrate import calibrate
from vitfold.calls import masked
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
from vitfold.families import families
from vitfold.fold import fold, unfold
from vitfold.freeze import freeze
from vitfold.importance import search as _search  # noqa: F401 (binds PruneMerge.search)
from vitfold.measure import flops, peak_memory, throughput
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
from vitfold.models import create_model
from vitfold.plan import load, save
from vitfold.tokenmap import PackedMap, TokenMap
from vitfold.trace import Trace, trace

__version__ = "0.1.0"

__all__ = [
    # on and off
    "calibrate",
    "fold",
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
    "create_model",
    "families",
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
