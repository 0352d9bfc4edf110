"""A program of `torch.export`, in one file."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vitfold.exporting.graph import Graph
from vitfold.exporting.targets.base import Runner, Target

FILE = "model.pt2"


class Torch(Target):
    """`torch.export.load` runs it, without vitfold and without the model's code."""

    name = "torch"
    runtime = "torch.export"

    def write(self, graph: Graph, directory: Path) -> None:
        """One `model.pt2`."""
        torch.export.save(graph.program, directory / FILE)

    def open(self, directory: Path, names: Sequence[str], threads: int | None = None) -> Runner:
        """The program's module."""
        module: Runner = torch.export.load(directory / FILE).module()
        return module


TARGET = Torch()
