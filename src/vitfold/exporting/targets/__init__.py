"""Targets by name: one file each."""

from vitfold.errors import UnsupportedModel, nearest
from vitfold.exporting.targets import aoti, onnx, openvino, torch
from vitfold.exporting.targets.base import Runner, Target, refusing

__all__ = ["TARGETS", "Runner", "Target", "refusing", "target"]

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET for module in (torch, aoti, onnx, openvino)
}


def target(name: str) -> Target:
    """The target of that name."""
    if name not in TARGETS:
        raise UnsupportedModel(f"unknown target {name!r}{nearest(name, TARGETS)}")
    return TARGETS[name]
