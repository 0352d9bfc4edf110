"""RunLength: patches of a video that do not change become one token that lasts."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.base import Base
from vitfold.methods.checks import check_number, check_switch
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState

AXES = 3
"""Of a grid that has time: that comes first, then height and width."""


@register("runlength")
@dataclass(frozen=True)
class RunLength(Base):
    """Run-length tokens: before the first block, of patches at one place of a clip that do not
    change from one step of time to the next, the first alone stays, and counts as often as the run
    is long. No training; a clip in which nothing repeats is computed as without it.

    What changes is told from pixels, as the model is given them, as in Run-Length Tokenization
    (arXiv 2411.05222), step by step: a slow change is none. There, the length of a run may also be
    embedded, for which a model is trained; here it is the size of the token.

    threshold: pixels may differ by so much, as a mean over a patch, in one that does not change.
    proportional: whether a token of size s counts s times in attention.
    """

    ragged: ClassVar[bool] = True
    pads: ClassVar[bool] = False
    gridded: ClassVar[bool] = True
    looks: ClassVar[bool] = True

    threshold: float = 0.1
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 1e9)
        check_switch("proportional", self.proportional)

    def check(self, layout: Layout) -> None:
        grid = layout.grid
        if grid is None or len(grid) != AXES:
            which = "tokens without a grid" if grid is None else f"a grid of {_axes(grid)}"
            raise MethodError(f"RunLength compares the frames of a clip: {which} has no time")

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        self.check(layout)
        first = Runs(removes=None, threshold=self.threshold, frames=(layout.grid or (1,))[0])
        return (first, *[None] * (layout.depth - 1))


@dataclass(frozen=True)
class Runs(Step):
    """Lets the first patch of every run stand for all of it.

    threshold: how much patches that do not change may differ.
    frames: how many steps of time there are.
    """

    threshold: float = field(kw_only=True)
    frames: int = field(kw_only=True)

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        pixels, state = state.notes, state.noting(None)
        if pixels is None:
            raise MethodError("RunLength looks at pixels, and this model's family shows none")
        if pixels.is_meta:  # shapes alone
            return x, state
        heads = state.prefix + run_starts(pixels, self.frames, self.threshold)
        prefix = torch.arange(state.prefix, device=x.device).expand(len(heads), -1)
        heads = torch.cat([prefix, heads.to(x.device)], dim=1)
        if not len(heads) or torch.equal(heads, state.places()):
            return x, state
        change = state.join(heads)
        return change.take(x), state.apply(x, change)[1]


@torch.no_grad()
def run_starts(pixels: Tensor, frames: int, threshold: float) -> Tensor:
    """`[B, N]`: for every patch of `pixels[B, N, D]`, frame by frame, that with which its run
    begins."""
    batch, patches, _ = pixels.shape
    each = pixels.unflatten(1, (frames, patches // frames))
    each = each.to(torch.promote_types(each.dtype, torch.float32))
    moved = (each[:, 1:] - each[:, :-1]).abs().mean(dim=-1)
    begins = torch.nn.functional.pad(~(moved <= threshold), (0, 0, 1, 0), value=True)
    places = torch.arange(patches, device=pixels.device).view(1, frames, -1).expand(batch, -1, -1)
    return places.where(begins, 0).cummax(dim=1).values.flatten(1)


def _axes(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
