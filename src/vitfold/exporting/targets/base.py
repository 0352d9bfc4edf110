"""The interface of a target: what a program is written for."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from vitfold.errors import UnsupportedModel, missing
from vitfold.exporting.graph import Graph, Outputs

Runner = Callable[[Tensor], Outputs]
"""Images `[B, C, H, W]` on the CPU in, outputs by name out."""


class Target(ABC):
    """One form of exported models, and the runtime that runs it.

    name: what it is asked for by.
    runtime: who runs it, for people to read.
    packages: what has to be installed, and by which extra.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "export"

    def check(self, int8: bool, what: str | None = None) -> None:
        """Refuse to begin without what this target takes.

        what: what it is called by who asks.
        """
        for package in self.packages + (self.quantizers if int8 else ()):
            if importlib.util.find_spec(package) is None:
                raise missing(package, self.extra)
        if int8 and not self.quantizes:
            raise no_eight_bits(what or f"target {self.name!r}")

    quantizes: ClassVar[bool] = False
    quantizers: ClassVar[tuple[str, ...]] = ()
    """What quantizing takes besides."""

    @abstractmethod
    def write(self, graph: Graph, directory: Path) -> None:
        """Write the program's files into a directory."""

    @abstractmethod
    def open(self, directory: Path, names: Sequence[str], threads: int | None = None) -> Runner:
        """What is in such a directory, ready to run. `names` are those of its outputs."""

    def quantize(self, source: Path, directory: Path, images: Sequence[Tensor]) -> None:
        """Write the program of one directory into another, in eight bits, its ranges taken from
        batches of images."""
        raise NotImplementedError


def no_eight_bits(what: str) -> UnsupportedModel:
    """The error where something does not quantize."""
    return UnsupportedModel(
        f"{what} has no INT8 here: give openvino or ONNX Runtime, or quantize the model before it "
        "is folded"
    )
