"""The methods. A new one is one file here, and its name below."""

from vitfold.methods.avit import AViT
from vitfold.methods.base import Base, Method, everywhere
from vitfold.methods.dfe import DFE
from vitfold.methods.diffrate import DiffRate
from vitfold.methods.drop import Drop
from vitfold.methods.dynamicvit import DynamicViT
from vitfold.methods.evit import EViT
from vitfold.methods.fisher import Fisher, FisherCut
from vitfold.methods.lgtm import LGTM
from vitfold.methods.ltmp import LTMP
from vitfold.methods.mctf import MCTF
from vitfold.methods.mergedrop import MergeDrop
from vitfold.methods.pitome import PiToMe
from vitfold.methods.prune_merge.method import PruneMerge
from vitfold.methods.registry import METHODS, create_method, ready, register
from vitfold.methods.runlength import RunLength
from vitfold.methods.step import Step
from vitfold.methods.tome import ToMe
from vitfold.methods.tome_around import ToMeAround
from vitfold.methods.ward import Ward
from vitfold.methods.wardcut import WardCut

__all__ = [
    "DFE",
    "LGTM",
    "LTMP",
    "MCTF",
    "METHODS",
    "AViT",
    "Base",
    "DiffRate",
    "Drop",
    "DynamicViT",
    "EViT",
    "Fisher",
    "FisherCut",
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
    "create_method",
    "everywhere",
    "ready",
    "register",
]
