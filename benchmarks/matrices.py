"""Whether Prune and Merge is as fast as its FLOPs promise: `python benchmarks/matrices.py`.

The dense model, the folded one and free slicing with the same numbers of patches, in turn, on one
set of random weights; scores are random too, as time depends on shapes alone. The promise is the
dense FLOPs over the folded ones, matrices included. Writes benchmarks/matrices-cpu.md and .json.

    python benchmarks/matrices.py                                 # float32, batch 32
    python benchmarks/matrices.py --device cuda --compile         # bfloat16, batch 256
"""

from collections.abc import Iterator
from typing import Annotated, Any

import timm
import torch
import typer
from speed import ratio
from tables import HERE, markdown
from torch import nn

import vitfold
from vitfold import PruneMerge
from vitfold.cli import options, show, values
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.tools import baselines, results
from vitfold.tools.measure import flops, interleave, peak_memory, random_inputs, timed
from vitfold.tools.prune_merge.rates import fit_rates

COLUMNS = (
    "model",
    "share of FLOPs",
    "promised",
    "x dense",
    "of the promise",
    "share of bound",
    "MB",
)


def find_(model: nn.Module, share: float) -> PruneMerge:
    """Matrices for that share, by random scores."""
    layout = find(model).layout()
    blocks = tuple(range(layout.depth // 4, layout.depth))
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(len(blocks), layout.patches, generator=generator)
    scores = tuple(map(tuple, rows.tolist()))
    method = PruneMerge(share, 0.1, blocks, grid=layout.grid, scores=scores)
    image = find(model).example()[find(model).arguments[0]]
    return fit_rates(model, method, share, image)


def row(name: str, share: float, batch: int, repeats: int, device: str, compiled: bool) -> Any:
    """Figures of one share."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device).eval()
    ours = vitfold.fold(clone(model), find_(model, share))
    named = {"dense": model, "folded": ours, "bound": baselines.bound(ours).eval()}
    inputs = random_inputs(model, batch)
    run: dict[str, Any] = {n: torch.compile(m) if compiled else m for n, m in named.items()}
    total = (repeats + 2) * len(run)
    with (
        show.bar(f"{name}, {share}", total) as progress,
        torch.autocast(device, torch.bfloat16, device != "cpu"),
    ):
        each = {n: timed(candidate, inputs) for n, candidate in run.items()}
        seconds = interleave(each, repeats, 2, progress)
        cost = {n: flops(candidate, inputs) for n, candidate in named.items() if n != "bound"}
    promised = cost["dense"] / cost["folded"]
    measured = ratio(seconds["dense"], seconds["folded"])
    return {
        "model": f"{name}, batch {batch}",
        "share of FLOPs": cost["folded"] / cost["dense"],
        "promised": promised,
        "x dense": measured,
        "of the promise": [each / promised for each in measured],
        "share of bound": ratio(seconds["bound"], seconds["folded"]),
        "MB": peak_memory(ours, inputs) / 1e6,
        "dense MB": peak_memory(model, inputs) / 1e6,
    }


def cells(figures: Any) -> Iterator[str]:
    """The line of the table."""
    for name in COLUMNS:
        value = figures[name]
        if isinstance(value, list):
            yield f"{value[1]:.3f} ({value[0]:.3f} to {value[2]:.3f})"
        elif name == "MB":
            yield f"{value:.0f} (dense {figures['dense MB']:.0f})"
        else:
            yield value if isinstance(value, str) else f"{value:.3f}"


def main(
    model: options.ModelName = "deit_small_patch16_224",
    shares: Annotated[str, typer.Option(help="Of the dense FLOPs.")] = "0.8,0.65,0.5",
    batch_size: Annotated[int | None, typer.Option("--batch-size", "-b", min=1)] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 15,
    device: str = "cpu",
    compile: Annotated[bool, typer.Option("--compile")] = False,  # noqa: A002
) -> None:
    """Measure, show and write."""
    batch = batch_size or (32 if device == "cpu" else 256)
    figures = [
        row(model, share, batch, repeats, device, compile) for share in values.shares(shares)
    ]
    lines = [list(cells(each)) for each in figures]
    show.table("Prune and Merge", COLUMNS, lines)
    name = HERE / f"matrices-{device}{'-compiled' if compile else ''}"
    results.write(name.with_suffix(".json"), figures, {"command": "benchmarks/matrices.py"})
    name.with_suffix(".md").write_text("\n".join([*markdown(COLUMNS, lines), ""]), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
