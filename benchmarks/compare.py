"""Two checkouts of vitfold on the same cases, in turn: `python benchmarks/compare.py`.

Both are imported into one process and fold copies of one model that share its weights, so that they
differ in nothing but their code: two processes differ by some per cent for as long as they live,
which is more than what is asked here. Memory that was freed is kept: else what ran before decides
whether a call waits for 250,000 new pages or for none (DeiT-S, dense, at batch 32). Within every
round the two take turns, and who begins changes from call to call. Told are ratios of times next to
each other, this checkout's over the other's: above 1 this one is slower. The dense model is the
same code on both sides: how far it is from 1 says what can be told apart. Only names that both have
at the front door are used, so their insides may differ in any way.

    python benchmarks/compare.py --against ../before/src --only 0..4
"""

import copy
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import timm
import torch
import typer
from tables import markdown, spread
from torch import Tensor, nn

from vitfold.tools.intervals import CONFIDENT
from vitfold.tools.measure import quartiles

SOURCE = Path(__file__).resolve().parent.parent / "src"

Case = tuple[str, int, int, int]
"""Model, side of its images, batch, tokens to remove per block."""

CASES: tuple[Case, ...] = (
    ("deit_small_patch16_224", 224, 32, 13),
    ("deit_base_patch16_224", 224, 8, 13),
    ("deit_tiny_patch16_224", 224, 32, 13),
    ("vit_small_patch16_224", 518, 4, 100),
    ("deit_small_patch16_224", 224, 1, 13),
)
"""As `speed.py` has them."""

TINY: tuple[Case, ...] = (("test_vit", 160, 2, 4),)
"""For a try of this program itself."""

METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "tome": {},
    "dfe": {"skip": 0},
    "lgtm": {"skip": 0},
    "ward": {},
}

SIDES = ("now", "before")

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""What glibc is told, before a process starts, so that it keeps memory that was freed."""

WARMUP = 2
"""Rounds that do not count."""

HEAD = ("case", "method", "before ms", "now ms", "now / before", "95 % of it")


@dataclass
class Checkout:
    """vitfold as one checkout has it, which does not see the other in the same process."""

    source: Path
    modules: dict[str, ModuleType] = field(default_factory=dict)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Whatever is imported by the name of vitfold is this one."""
        others = _take_out()
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.source))
        try:
            yield
        finally:
            sys.path.remove(str(self.source))
            self.modules = _take_out()
            sys.modules.update(others)

    def fold(self, model: nn.Module, method: str, r: int) -> None:
        """In place."""
        with self.entered():
            import vitfold

            where = Path(vitfold.__file__).resolve()
            if self.source.resolve() not in where.parents:
                raise SystemExit(f"{self.source} was asked for, and {where} was imported")
            vitfold.fold(model, method, r=r, **METHODS[method])

    def seconds(self, model: nn.Module, pixels: Tensor) -> float:
        """The time of one call."""
        with self.entered(), torch.inference_mode():
            start = time.perf_counter()
            model(pixels)
            return time.perf_counter() - start


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == "vitfold"]
    return {name: sys.modules.pop(name) for name in names}


def _with_shared_weights(model: nn.Module) -> nn.Module:
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def measure(case: Case, checkouts: dict[str, Checkout], repeats: int) -> Iterator[list[str]]:
    """A row for every method."""
    name, image, batch, r = case
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=image).eval()
    pixels = torch.randn(batch, 3, image, image)
    models = {(method, side): _with_shared_weights(model) for method in METHODS for side in SIDES}
    for (method, side), copied in models.items():
        if method != "dense":
            checkouts[side].fold(copied, method, r)

    times: dict[str, dict[str, list[float]]] = {m: {side: [] for side in SIDES} for m in METHODS}
    for turn in range(WARMUP + repeats):
        gc.collect()
        for place, method in enumerate(METHODS):
            for side in SIDES if (turn + place) % 2 else SIDES[::-1]:
                seconds = checkouts[side].seconds(models[method, side], pixels)
                if turn >= WARMUP:
                    times[method][side].append(seconds)
    for method, both in times.items():
        yield [f"{name} at {image} px, batch {batch}, r={r}", method, *_cells(both)]


def _cells(times: dict[str, list[float]]) -> list[str]:
    ratios = [now / before for now, before in zip(times["now"], times["before"], strict=True)]
    low, high = _interval_of_median(ratios)
    medians = (f"{statistics.median(times[side]) * 1e3:.1f}" for side in ("before", "now"))
    return [*medians, spread(quartiles(ratios)), f"{low:.3f} to {high:.3f}"]


def _interval_of_median(values: list[float]) -> tuple[float, float]:
    """Between which two of the values the median of all that could be measured lies, by signs; of
    fewer than six, no two are that sure."""
    ordered, count = sorted(values), len(values)
    outside = max(0, math.floor(count / 2 - CONFIDENT / 2 * math.sqrt(count)) - 1)
    return ordered[outside], ordered[count - 1 - outside]


def _numbers(text: str) -> list[int]:
    """`3`, `0,2`, or `0..4`."""
    if ".." in text:
        first, last = text.split("..")
        return list(range(int(first), int(last) + 1))
    return [int(part) for part in text.split(",")]


def main(
    against: Annotated[Path, typer.Option(help="The src of another checkout.")],
    only: Annotated[str, typer.Option(help="Cases by number from 0: 3, or 0,2, or 0..4.")] = "0..4",
    repeats: Annotated[int, typer.Option(min=6)] = 40,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny case alone, for a try.")] = False,
    output: Annotated[Path | None, typer.Option(help="The table, as Markdown.")] = None,
) -> None:
    """Ratios of this checkout's times over another's, case by case."""
    if not (against / "vitfold").is_dir():
        raise SystemExit(f"--against {against}: expected the src of a checkout of vitfold")
    if not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    torch.set_num_threads(threads)
    checkouts = {"now": Checkout(SOURCE), "before": Checkout(against)}
    rows: list[list[str]] = []
    for case in TINY if tiny else [CASES[number] for number in _numbers(only)]:
        for row in measure(case, checkouts, repeats):
            rows.append(row)
            print(" | ".join(row), flush=True)
    if output is not None:
        output.write_text("\n".join([*markdown(HEAD, rows), ""]), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
