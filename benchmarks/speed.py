"""How close folding comes to removing tokens for free: `python benchmarks/speed.py`.

For every row of a suite: the dense model, textbook ToMe, free slicing with the same token
schedule, and ToMe, DFE, LGTM and Ward removing the same numbers of tokens, on one set of random
weights, in turn. Writes a table as Markdown and the figures as JSON beside it.

    python benchmarks/speed.py                                    # float32 on the CPU
    python benchmarks/speed.py --suite gpu --device cuda          # bfloat16, eager
    python benchmarks/speed.py --suite gpu --device cuda --compile
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from tables import HERE, markdown, spread
from torch import nn

import vitfold
from vitfold.cli import show
from vitfold.folding.fold import clone
from vitfold.tools import baselines, results
from vitfold.tools.measure import interleave, peak_memory, quartiles, random_inputs, timed
from vitfold.tools.removal import removed


@dataclass(frozen=True)
class Case:
    """One row: a model, its image size, a batch and the tokens to remove per block."""

    model: str
    image: int
    batch: int
    r: int

    def __str__(self) -> str:
        return f"{self.model} at {self.image} px, batch {self.batch}, r={self.r}"


SUITES = {
    "cpu": [
        Case("deit_small_patch16_224", 224, 32, 13),
        Case("deit_base_patch16_224", 224, 8, 13),
        Case("deit_tiny_patch16_224", 224, 32, 13),
        Case("vit_small_patch16_224", 518, 4, 100),
        Case("deit_small_patch16_224", 224, 1, 13),
    ],
    "gpu": [
        Case("deit_small_patch16_224", 224, 256, 13),
        Case("vit_base_patch16_224", 224, 256, 13),
        Case("vit_large_patch16_224", 224, 256, 8),
        Case("vit_base_patch14_dinov2", 518, 32, 100),
    ],
}

DTYPES = {"cpu": "float32", "gpu": "bfloat16"}
"""What a suite computes in: on a GPU by autocast."""


def candidates(model: nn.Module, case: Case) -> dict[str, nn.Module]:
    """ToMe's candidates, DFE and Ward at its counts, and LGTM beside a bound of its own."""
    tome = vitfold.fold(clone(model), vitfold.ToMe(r=case.r))
    named = baselines.candidates(tome)
    named["DFE"] = vitfold.fold(clone(model), vitfold.DFE(r=case.r, skip=0))
    named["Ward"] = vitfold.fold(clone(model), vitfold.Ward(r=case.r))
    lgtm = vitfold.fold(clone(model), vitfold.LGTM(r=case.r, skip=0))
    named["LGTM"] = lgtm
    named["LGTM's bound"] = baselines.free_slicing(model, removed(lgtm))
    return named


BOUND_OF = {"LGTM": "LGTM's bound"}


def rows(case: Case, seconds: dict[str, list[float]], memory: dict[str, int]) -> Iterator[Any]:
    """What is reported: ratios round by round, then their median and quartiles."""
    for name, times in seconds.items():
        bound = seconds[BOUND_OF.get(name, baselines.BOUND)]
        ratios = {
            "share of bound": ratio(bound, times),
            "x dense": ratio(seconds[baselines.DENSE], times),
        }
        if baselines.TEXTBOOK in seconds:
            ratios["x textbook"] = ratio(seconds[baselines.TEXTBOOK], times)
        yield {
            "case": str(case),
            "candidate": name,
            "ms": quartiles(times)[1] * 1e3,
            "peak MB": memory[name] / 1e6,
            **ratios,
        }


def ratio(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios within a round."""
    return quartiles([a / b for a, b in zip(theirs, ours, strict=True)])


def measure(case: Case, device: str, compiled: bool, repeats: int, amp: bool) -> list[Any]:
    """All candidates of one case, in turn."""
    torch.manual_seed(0)
    model = timm.create_model(case.model, img_size=case.image).to(device).eval()
    named = candidates(model, case)
    inputs = random_inputs(model, case.batch)
    run: dict[str, Any] = {n: torch.compile(m) if compiled else m for n, m in named.items()}
    total = (repeats + 2) * len(run)
    with show.bar(str(case), total) as progress, torch.autocast(device, torch.bfloat16, amp):
        seconds = interleave(
            {name: timed(candidate, inputs) for name, candidate in run.items()},
            repeats,
            warmup=2,
            progress=progress,
        )
        memory = {name: peak_memory(candidate, inputs) for name, candidate in named.items()}
    return list(rows(case, seconds, memory))


def table(result: list[Any]) -> str:
    """Medians, with quartiles in brackets."""
    ratios = ["share of bound", "x dense", "x textbook"]
    head = ["case", "candidate", "ms", "peak MB", *ratios]
    rows = []
    for row in result:
        cells = [row["case"], row["candidate"], f"{row['ms']:.1f}", f"{row['peak MB']:.0f}"]
        rows.append(cells + [spread(row[key]) if key in row else "" for key in ratios])
    return "\n".join([*markdown(head, rows), ""])


def main(
    suite: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    device: str = "cpu",
    compile: Annotated[bool, typer.Option("--compile")] = False,  # noqa: A002
    repeats: Annotated[int, typer.Option(min=1)] = 15,
    only: Annotated[int | None, typer.Option(help="One case, by number from 0.")] = None,
    output: Path = HERE,
) -> None:
    """Measure a suite and write `speed-SUITE[-compiled].md` and `.json`."""
    cases = SUITES[suite] if only is None else [SUITES[suite][only]]
    result = [
        row for case in cases for row in measure(case, device, compile, repeats, amp=suite == "gpu")
    ]
    output.mkdir(parents=True, exist_ok=True)
    name = output / f"speed-{suite}{'-compiled' if compile else ''}"
    about = {"command": "benchmarks/speed.py", "dtype": DTYPES[suite]}
    about["runtime"] = "compile" if compile else "eager"
    results.write(name.with_suffix(".json"), result, about)
    text = table(result)
    name.with_suffix(".md").write_text(text, encoding="utf-8")
    show.console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
