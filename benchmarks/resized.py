"""Prune and Merge at other sizes than it was searched for: `python benchmarks/resized.py`.

The embedded digits model, with its positions interpolated: matrices by a search at the new size, by
`resize` of what was found at the old one, and by numbers that mean nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from tables import HERE, markdown
from torch import Tensor, nn

import vitfold
from vitfold import PruneMerge
from vitfold.cli import show
from vitfold.data.digits import load_split
from vitfold.folding.fold import clone
from vitfold.saving.models import create_model
from vitfold.tools.intervals import interval
from vitfold.tools.prune_merge.rates import fit_rates

SIDES = (40, 48, 64, 72)
SHARE, ITERATIONS, BATCH = 0.7, 20, 32
COLUMNS = ("side", "matrices", "share of FLOPs", "top-1", "95 % interval", "agrees with dense")


def resized(images: Tensor, side: int) -> Tensor:
    """Images of another size."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def batches(side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled digits for a search."""
    images, labels = load_split("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for some in order[: ITERATIONS * BATCH].split(BATCH):
        yield resized(images[some], side), labels[some]


def search(model: nn.Module, side: int) -> PruneMerge:
    """What a search finds at a size."""
    return PruneMerge.search(model, batches(side), flops=SHARE, iterations=ITERATIONS)


def noise(method: PruneMerge) -> PruneMerge:
    """The same with scores that mean nothing."""
    assert method.scores is not None
    generator = torch.Generator().manual_seed(0)
    shape = len(method.scores), len(method.scores[0])
    scores = tuple(map(tuple, torch.rand(shape, generator=generator).tolist()))
    return PruneMerge(method.keep, method.prune, method.blocks, grid=method.grid, scores=scores)


def rows() -> Iterator[list[str]]:
    """Of all sizes."""
    images, labels = load_split("test")
    first = search(create_model("digits", pretrained=True), images.shape[-1])
    for side in SIDES:
        model: Any = create_model("digits", pretrained=True)
        model.set_input_size((side, side))
        pixels = resized(images, side)
        grid = side // model.patch_embed.patch_size[0]
        moved = first.resize((grid, grid))
        other = fit_rates(model, noise(moved), SHARE, pixels[:1])
        ways = {"searched": search(model, side), "resized": moved, "at random": other}
        with torch.no_grad():
            dense, whole = model(pixels).argmax(1), vitfold.flops(model, pixels[:1])
            for name, way in ways.items():
                folded = vitfold.fold(clone(model), way)
                output = folded(pixels).argmax(1)
                right = int((output == labels).sum())
                low, high = interval(right, len(labels))
                share = vitfold.flops(folded, pixels[:1]) / whole
                same = float((output == dense).double().mean())
                yield [
                    str(side), name, f"{share:.3f}", f"{right / len(labels):.1%}",
                    f"{low:.1%} to {high:.1%}", f"{same:.1%}",
                ]  # fmt: skip


def main() -> None:
    """Measure, show and write the table."""
    result = list(rows())
    show.table("Prune and Merge at other sizes", COLUMNS, result)
    text = "\n".join(["# Digits", "", *markdown(COLUMNS, result), ""])
    (HERE / "resized.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
