"""How fast images with numbers of tokens of their own are: `python benchmarks/ragged.py`.

Weights and images are random, so thresholds are set block by block to a share of the FLOPs: half of
what leaves merges, half is dropped. Images of several contrasts make their numbers differ. Beside
it, in turn: the dense model, the same mean numbers fixed (`MergeDrop`, and `ToMe`, which only
merges), and free slicing.

    python benchmarks/ragged.py                                   # float32 on the CPU
    python benchmarks/ragged.py --suite gpu --device cuda
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from speed import DTYPES, ratio
from tables import HERE, markdown, spread
from torch import Tensor, nn

import vitfold
from vitfold.cli import show
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.tools import baselines, results
from vitfold.tools.measure import interleave, peak_memory, quartiles, timed
from vitfold.tools.removal import removed

LTMP, MERGED, TOME = "LTMP", "MergeDrop", "ToMe"

BISECTIONS = 12


@dataclass(frozen=True)
class Case:
    """A model, a batch and the share of the FLOPs."""

    model: str
    batch: int
    share: float

    def __str__(self) -> str:
        return f"{self.model}, {self.batch}, {self.share}"


SUITES = {
    "cpu": [
        Case("deit_small_patch16_224", 32, 0.6),
        Case("deit_small_patch16_224", 1, 0.6),
        Case("deit_tiny_patch16_224", 32, 0.6),
        Case("deit_base_patch16_224", 8, 0.6),
    ],
    "gpu": [Case("deit_small_patch16_224", 256, share) for share in (0.75, 0.6, 0.5)],
}


def images(batch: int, device: str) -> Tensor:
    """Noise of several contrasts and scales."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(max(batch, 8), 3, 28, 28, generator=generator)
    fine = torch.randn(max(batch, 8), 3, 224, 224, generator=generator)
    part = torch.linspace(0, 1, max(batch, 8))[:, None, None, None]
    smooth = torch.nn.functional.interpolate(coarse, size=224, mode="bilinear")
    return (part * fine + (1 - part) * smooth)[:batch].to(device)


def thresholds(model: nn.Module, visits: Tensor, share: float) -> None:
    """Let the same number leave every block, on average over the images, as ToMe's schedule."""
    tome = vitfold.fold(clone(model), vitfold.ToMe(flops=share))
    removes = removed(tome)
    vitfold.fold(model, vitfold.LTMP(merge_threshold=1.0, prune_threshold=0.0))
    learned: Any = fold_of(model).learned
    left = float(fold_of(model).family.layout().tokens)
    for block, count in enumerate(removes):
        for name, part, reverse in (("merge", 0.5, True), ("prune", 1.0, False)):
            level = getattr(learned, name).data
            _bisect(model, visits, block, level, left - count * part, reverse)
        left = _left(model, visits, block)


def _bisect(
    model: nn.Module, visits: Tensor, block: int, level: Tensor, request: float, reverse: bool
) -> None:
    low, high = 0.0, 1.0 if reverse else 0.05
    for _ in range(BISECTIONS):
        level[block] = (low + high) / 2
        more = _left(model, visits, block) > request  # more has to leave
        low, high = (low, float(level[block])) if more == reverse else (float(level[block]), high)


def _left(model: nn.Module, visits: Tensor, block: int) -> float:
    counts = vitfold.trace(model, visits).counts[block]
    return sum(counts) / len(counts)


def measure(case: Case, device: str, repeats: int, amp: bool) -> list[dict[str, Any]]:
    """All candidates of one case, in turn."""
    torch.manual_seed(0)
    model = timm.create_model(case.model).to(device).eval()
    inputs = images(case.batch, device)
    ours = clone(model)
    thresholds(ours, inputs[:: max(1, case.batch // 8)], case.share)
    counts = vitfold.trace(ours, inputs).counts[-1]
    removes = list(removed(ours, inputs))
    named = {
        baselines.DENSE: clone(model),
        baselines.BOUND: baselines.free_slicing(ours, removes),
        TOME: vitfold.fold(clone(model), vitfold.ToMe(r=removes)),
        MERGED: vitfold.freeze(_again(ours, model), inputs),
        LTMP: ours,
    }
    total = (repeats + 2) * len(named)
    with show.bar(str(case), total) as progress, torch.autocast(device, torch.bfloat16, amp):
        runs = {name: timed(candidate, inputs) for name, candidate in named.items()}
        seconds = interleave(runs, repeats, 2, progress)
        memory = {name: peak_memory(candidate, inputs) for name, candidate in named.items()}
    work = {name: vitfold.flops(model, inputs) for name, model in named.items()}
    return [
        {
            "case": str(case),
            "candidate": name,
            "tokens at the end": f"{min(counts)} to {max(counts)}" if name == LTMP else "",
            "GFLOPs share": work[name] / work[baselines.DENSE],
            "ms": quartiles(times)[1] * 1e3,
            "peak MB": memory[name] / 1e6,
            "share of bound": ratio(seconds[baselines.BOUND], times),
            "x dense": ratio(seconds[baselines.DENSE], times),
            "x ToMe": ratio(seconds[TOME], times),
            "x MergeDrop": ratio(seconds[MERGED], times),
        }
        for name, times in seconds.items()
    ]


def _again(ours: nn.Module, model: nn.Module) -> nn.Module:
    """Another model with the same thresholds."""
    other = vitfold.fold(clone(model), fold_of(ours).method)
    learned, state = fold_of(other).learned, fold_of(ours).learned
    assert learned is not None
    assert state is not None
    learned.load_state_dict(state.state_dict())
    return other


def table(result: list[dict[str, Any]]) -> str:
    """Medians, with quartiles in brackets."""
    rows = [[_cell(value) for value in row.values()] for row in result]
    return "\n".join([*markdown(list(result[0]), rows), ""])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return spread(value)
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.0f}"
    return str(value)


def main(
    suite: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    device: str = "cpu",
    repeats: Annotated[int, typer.Option(min=1)] = 15,
    only: Annotated[
        list[int] | None, typer.Option(help="A case, by number from 0; may be repeated.")
    ] = None,
    output: Path = HERE,
) -> None:
    """Measure a suite and write `ragged-SUITE.md` and `.json`, anew after every case."""
    cases = [SUITES[suite][number] for number in only or range(len(SUITES[suite]))]
    output.mkdir(parents=True, exist_ok=True)
    name = output / f"ragged-{suite}"
    result: list[dict[str, Any]] = []
    for case in cases:
        result += measure(case, device, repeats, suite == "gpu")
        about = {"command": "benchmarks/ragged.py", "dtype": DTYPES[suite]}
        results.write(name.with_suffix(".json"), result, about)
        name.with_suffix(".md").write_text(table(result), encoding="utf-8")
    show.console.print(table(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
