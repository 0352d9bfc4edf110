"""A package that torch compiles ahead of time, for machines without Python's compiler."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from vitfold.errors import MissingExtra
from vitfold.exporting.graph import Graph, quiet
from vitfold.exporting.targets.base import Runner, Target

FILE = "model.pt2"


class AheadOfTime(Target):
    """AOTInductor: `torch._inductor.aoti_load_package` runs it, from C++ too."""

    name = "aoti"
    runtime = "AOTInductor"

    def check(self, int8: bool, what: str | None = None, preprocess: bool = False) -> None:
        """Refuse to begin without a compiler."""
        super().check(int8, what, preprocess)
        if shutil.which("c++") is None and shutil.which("g++") is None:
            raise MissingExtra(
                f"{what or 'target aoti'} compiles C++, and there is no compiler: install g++, or "
                "give another one"
            )

    def write(self, graph: Graph, directory: Path) -> None:
        """One `model.pt2` with the compiled code in it."""
        with quiet():
            torch._inductor.aoti_compile_and_package(
                graph.program, package_path=str(directory / FILE)
            )

    def open(self, directory: Path, names: Sequence[str], threads: int | None = None) -> Runner:
        """The compiled code."""
        module: Runner = torch._inductor.aoti_load_package(str(directory / FILE))
        return module


TARGET = AheadOfTime()
