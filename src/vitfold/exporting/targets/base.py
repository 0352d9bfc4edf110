"""The interface of a target: what a program is written for."""

import contextlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from vitfold.errors import UnsupportedModel, VitfoldError, missing
from vitfold.exporting.graph import Graph, Outputs
from vitfold.exporting.pictures import Preparation

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

    def check(self, int8: bool, what: str | None = None, preprocess: bool = False) -> None:
        """Refuse to begin without what this target takes.

        what: what it is called by who asks.
        preprocess: whether its program is to prepare pictures.
        """
        if preprocess and not self.preprocesses:
            raise UnsupportedModel(
                f"{what or f'target {self.name!r}'} has no preprocessing in its program: give "
                "openvino, or prepare pictures outside"
            )
        for package in self.packages + (self.quantizers if int8 else ()):
            if importlib.util.find_spec(package) is None:
                raise missing(package, self.extra)
        if int8 and not self.quantizes:
            raise no_eight_bits(what or f"target {self.name!r}")

    quantizes: ClassVar[bool] = False
    quantizers: ClassVar[tuple[str, ...]] = ()
    """What quantizing takes besides."""
    preprocesses: ClassVar[bool] = False

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

    def prepend(self, source: Path, directory: Path, preparation: Preparation) -> None:
        """Write the program of one directory into another, such that it takes pictures
        `[B, H, W, 3]` in 8 bits, of any size, and prepares them itself."""
        raise NotImplementedError

    def preparing(self, preparation: Preparation) -> Callable[[Tensor], Tensor]:
        """That preparation alone: pictures in, `[B, C, H, W]` out."""
        raise NotImplementedError


@contextlib.contextmanager
def refusing(target: Target) -> Iterator[None]:
    """Within it, what a target's libraries raise is one line that says what to do."""
    try:
        yield
    except (VitfoldError, OSError, MemoryError):
        raise
    except Exception as error:  # they raise what they like, with pages around it
        raise UnsupportedModel(
            f"{target.runtime} does not take this model: {_gist(error)}: give another method or "
            "target"
        ) from error


GIST = 200
"""How many characters are told of an error of a target's libraries."""


def _gist(error: Exception) -> str:
    """What an error says, without where in C++ it was raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    words = " ".join(line for line in lines if line and not line.startswith("Exception from"))
    return (words or type(error).__name__)[:GIST]


def no_eight_bits(what: str) -> UnsupportedModel:
    """The error where something does not quantize."""
    return UnsupportedModel(
        f"{what} has no INT8 here: give openvino or ONNX Runtime, or quantize the model before it "
        "is folded"
    )
