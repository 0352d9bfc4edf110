"""How fast folds are where models are served: `python benchmarks/runtimes.py`.

For every row: the dense model in eager torch and in the runtime, free slicing in the runtime, and
folded models there, on one set of random weights, in turn. Shares are of free slicing with the same
token counts in the same runtime. Writes `runtimes-cpu.md`, and the figures as JSON beside it; rows
of other runtimes in that file stay.

    python benchmarks/runtimes.py --runtime openvino
    python benchmarks/runtimes.py --runtime onnxruntime --only 0 --only 3
    python benchmarks/runtimes.py --runtime openvino --fixed      # graphs of one batch size
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from speed import ratio
from tables import HERE, earlier, markdown, spread
from torch import nn

import vitfold
from vitfold.cli import show
from vitfold.exporting.runtime import Runtime
from vitfold.folding.fold import clone
from vitfold.methods import Base
from vitfold.tools import results
from vitfold.tools.baselines import bound
from vitfold.tools.measure import interleave, quartiles, timed

EAGER, DENSE, FLOAT = "dense, eager torch", "dense", "dense, float32"


@dataclass(frozen=True)
class Case:
    """One row: a model, its image size, a batch, and how it is folded.

    aims: the share of free slicing that is asked of every runtime; 0: none.
    """

    model: str
    image: int
    batch: int
    folds: Mapping[str, Callable[[], Base]]
    aims: Mapping[str, float]
    int8: bool = False

    def __str__(self) -> str:
        kind = ", INT8" if self.int8 else ""
        return f"{self.model} at {self.image} px, batch {self.batch}{kind}"


def tome(r: int) -> Callable[[], Base]:
    return lambda: vitfold.ToMe(r=r)


def lgtm(r: int) -> Callable[[], Base]:
    return lambda: vitfold.LGTM(r=r, skip=0)


def ward() -> Base:
    return vitfold.Ward(flops=0.6)


AIMS = {"openvino": 0.96, "onnxruntime": 0.95, "compile": 0.95, "eager": 0.0, "aoti": 0.0}
SMALL = {"openvino": 0.90, "onnxruntime": 0.90}
LARGE = dict.fromkeys(AIMS, 0.97)

CASES = [
    Case(
        "deit_small_patch16_224", 224, batch,
        {"ToMe r=13": tome(13), "LGTM r=13": lgtm(13), "Ward 0.6": ward}, AIMS,
    )
    for batch in (1, 8)
] + [
    Case("deit_tiny_patch16_224", 224, 1, {"ToMe r=13": tome(13), "Ward 0.6": ward}, SMALL),
    Case("vit_small_patch14_dinov2", 518, 1, {"ToMe r=100": tome(100)}, LARGE),
    Case("deit_small_patch16_224", 224, 8, {"Ward 0.6": ward}, {}, int8=True),
]  # fmt: skip


def candidates(case: Case, runtime: Runtime, progress: Callable[[], None]) -> dict[str, nn.Module]:
    """All that is timed, as the runtime runs it."""
    torch.manual_seed(0)
    dense = timm.create_model(case.model, img_size=case.image).eval()
    named: dict[str, nn.Module] = {EAGER: dense}
    if case.int8:
        named[FLOAT] = Runtime(runtime.name, batch_size=runtime.batch_size).serve(dense)
    named[DENSE] = runtime.serve(dense)
    progress()
    for name, method in case.folds.items():
        folded = vitfold.fold(clone(dense), method())
        named[f"bound of {name}"] = runtime.serve(bound(folded))
        named[name] = runtime.serve(folded)
        progress()
    return named


def measure(case: Case, name: str, fixed: bool, repeats: int) -> list[dict[str, Any]]:
    """All candidates of one case, in turn."""
    runtime = Runtime(name, case.int8, batch_size=case.batch if fixed else None)
    with show.bar(f"preparing {case}", 1 + len(case.folds)) as progress:
        named = candidates(case, runtime, progress)
    images = torch.randn(case.batch, 3, case.image, case.image)
    with show.bar(str(case), (repeats + 3) * len(named)) as progress:
        runs = {name: timed(candidate, images) for name, candidate in named.items()}
        seconds = interleave(runs, repeats, 3, progress)
    about = {"case": str(case), "runtime": name, "graph": "fixed" if fixed else "any batch"}
    return [about | row for row in rows(case, name, seconds)]


def rows(case: Case, runtime: str, seconds: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    """What is reported: ratios round by round, then their median and quartiles."""
    for name, times in seconds.items():
        row: dict[str, Any] = {"candidate": name, "ms": quartiles(times)[1] * 1e3}
        row["x eager dense"] = ratio(seconds[EAGER], times)
        row["x dense"] = ratio(seconds[DENSE], times)
        if FLOAT in seconds:
            row["x float32 dense"] = ratio(seconds[FLOAT], times)
        if f"bound of {name}" in seconds:
            row["share of bound"] = ratio(seconds[f"bound of {name}"], times)
            row["aim"] = case.aims.get(runtime) or None
        yield row


RATIOS = ("share of bound", "x dense", "x float32 dense", "x eager dense")


def table(result: list[dict[str, Any]]) -> str:
    """Medians, with quartiles in brackets."""
    head = ["case", "runtime", "graph", "candidate", "ms", *RATIOS, "aim"]
    lines = []
    for row in result:
        cells = [row["case"], row["runtime"], row["graph"], row["candidate"], f"{row['ms']:.1f}"]
        aim = "" if not row.get("aim") else f"{row['aim']:.2f}"
        lines.append([*cells, *(spread(row[k]) if k in row else "" for k in RATIOS), aim])
    return "\n".join([*markdown(head, lines), ""])


def before(file: Path, fresh: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the file that are not measured now."""
    keys = {(row["case"], row["runtime"], row["graph"]) for row in fresh}
    return [row for row in earlier(file) if (row["case"], row["runtime"], row["graph"]) not in keys]


def place(row: dict[str, Any]) -> tuple[str, int, str]:
    """Where a row stands in the table: by runtime, then as cases do."""
    return row["runtime"], [str(case) for case in CASES].index(row["case"]), row["graph"]


def main(
    runtime: str = "openvino",
    fixed: Annotated[bool, typer.Option(help="Graphs that take one batch size.")] = False,
    repeats: Annotated[int, typer.Option(min=1)] = 25,
    only: Annotated[list[int], typer.Option(help="A case, by number from 0.")] = [],  # noqa: B006
    output: Path = HERE,
) -> None:
    """Measure cases in a runtime and write them into `runtimes-cpu.md` and `.json`."""
    output.mkdir(parents=True, exist_ok=True)
    chosen = [CASES[number] for number in only] or CASES
    takes_int8 = runtime in ("openvino", "onnxruntime")
    result: list[dict[str, Any]] = []
    file = output / "runtimes-cpu.json"
    for case in chosen:
        if case.int8 and not takes_int8:
            continue
        result += measure(case, runtime, fixed, repeats)
        every = sorted([*before(file, result), *result], key=place)
        results.write(file, every, {"command": "benchmarks/runtimes.py"})
        file.with_suffix(".md").write_text(table(every), encoding="utf-8")
    show.console.print(table(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
