"""Two checkouts of vitfold on the same cases, in turn: `python benchmarks/compare.py`.

Every checkout runs in a process of its own, on the same random weights and images. The two take
turns within every round, and who begins changes from round to round. Told are the ratios of times
within a round, this checkout's over the other's: above 1 this one is slower. The dense model is the
same code on both sides: how far it is from 1 says what can be told apart. Two processes differ by
some per cent as long as they live, so they are started anew a few times. Only names that both have
at the front door are used, so their insides may differ in any way.

    python benchmarks/compare.py --against ../before/src --only 0..4
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

SOURCE = Path(__file__).resolve().parent.parent / "src"

CASES = (
    ("deit_small_patch16_224", 224, 32, 13),
    ("deit_base_patch16_224", 224, 8, 13),
    ("deit_tiny_patch16_224", 224, 32, 13),
    ("vit_small_patch16_224", 518, 4, 100),
    ("deit_small_patch16_224", 224, 1, 13),
)
"""Model, side of its images, batch, tokens to remove per block: as `speed.py` has them."""

TINY = (("test_vit", 160, 2, 4),)
"""For a try of this program itself."""

METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "tome": {},
    "dfe": {"skip": 0},
    "lgtm": {"skip": 0},
    "ward": {},
}


WARMUP = 2
"""Rounds of every start that do not count."""

Times = dict[str, dict[str, list[float]]]
"""Seconds by method and side."""


class Worker:
    """A process that times one checkout's candidates when it is asked to."""

    def __init__(self, source: Path, case: tuple[str, int, int, int], threads: int) -> None:
        self.source = source
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", json.dumps(case)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        where = Path(self._read())
        if source.resolve() not in where.resolve().parents:
            raise SystemExit(f"{source} was asked for, and {where} was imported")

    def seconds(self, method: str) -> float:
        """The time of one call."""
        assert self.process.stdin is not None
        self.process.stdin.write(method + "\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that measures {self.source} has ended")
        return line.strip()


def work(case: tuple[str, int, int, int]) -> None:
    """The other side of `Worker`: one line in, the name of a method; one out, seconds."""
    import vitfold

    print(vitfold.__file__, flush=True)
    calls = {method: _call(method, case) for method in METHODS}
    for line in sys.stdin:
        print(calls[line.strip()](), flush=True)


def _call(method: str, case: tuple[str, int, int, int]) -> Callable[[], float]:
    """One timed call of a model that is folded by a method."""
    import time

    import timm

    import vitfold

    name, image, batch, r = case
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=image).eval()
    pixels = torch.randn(batch, 3, image, image)
    if method != "dense":
        vitfold.fold(model, method, r=r, **METHODS[method])

    def call() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            model(pixels)
            return time.perf_counter() - start

    return call


def measure(
    case: tuple[str, int, int, int], against: Path, repeats: int, starts: int, threads: int
) -> Iterator[dict[str, Any]]:
    """A row for every method."""
    times: Times = {method: {"now": [], "before": []} for method in METHODS}
    for _ in range(starts):
        sides = {"now": Worker(SOURCE, case, threads), "before": Worker(against, case, threads)}
        _take_turns(sides, repeats, times)
        for worker in sides.values():
            worker.close()
    for method, both in times.items():
        yield _row(case, method, both["now"], both["before"])


def _take_turns(sides: dict[str, Worker], repeats: int, times: Times) -> None:
    for turn in range(WARMUP + repeats):
        order = list(sides) if turn % 2 else list(sides)[::-1]
        for method in METHODS:
            for side in order:
                seconds = sides[side].seconds(method)
                if turn >= WARMUP:
                    times[method][side].append(seconds)


def _row(
    case: tuple[str, int, int, int], method: str, now: list[float], before: list[float]
) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(now, before, strict=True)]
    low, middle, high = statistics.quantiles(ratios * (2 if len(ratios) < 2 else 1), n=4)
    name, image, batch, r = case
    return {
        "case": f"{name} at {image} px, batch {batch}, r={r}",
        "method": method,
        "before ms": statistics.median(before) * 1e3,
        "now ms": statistics.median(now) * 1e3,
        "now / before": [low, middle, high],
        "least / least": min(now) / min(before),
    }


def _numbers(text: str) -> list[int]:
    """`3`, `0,2`, or `0..4`."""
    if ".." in text:
        first, last = text.split("..")
        return list(range(int(first), int(last) + 1))
    return [int(part) for part in text.split(",")]


def main(
    against: Annotated[Path | None, typer.Option(help="The src of another checkout.")] = None,
    only: Annotated[str, typer.Option(help="Cases by number from 0: 3, or 0,2, or 0..4.")] = "0..4",
    repeats: Annotated[int, typer.Option(min=1, help="Of every start.")] = 3,
    starts: Annotated[int, typer.Option(min=1, help="How often processes begin anew.")] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny case alone, for a try.")] = False,
    output: Annotated[Path | None, typer.Option(help="The table, as Markdown.")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Ratios of this checkout's times over another's, case by case."""
    if worker:
        work(json.loads(worker))
        return
    if against is None or not (against / "vitfold").is_dir():
        raise SystemExit(f"--against {against}: expected the src of a checkout of vitfold")
    from tables import markdown, spread

    rows: list[list[str]] = []
    head = ["case", "method", "before ms", "now ms", "now / before", "least / least"]
    for case in TINY if tiny else [CASES[number] for number in _numbers(only)]:
        for row in measure(case, against, repeats, starts, threads):
            cells = [row["case"], row["method"], *(f"{row[name]:.1f}" for name in head[2:4])]
            rows.append([*cells, spread(row["now / before"]), f"{row['least / least']:.3f}"])
            print(" | ".join(rows[-1]), flush=True)
    if output is not None:
        output.write_text("\n".join([*markdown(head, rows), ""]), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
