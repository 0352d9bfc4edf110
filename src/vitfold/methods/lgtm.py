"""LGTM: merge inside growing windows first, over the whole image later."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.checks import check_choice, check_whole
from vitfold.methods.merging import Late
from vitfold.methods.registry import register
from vitfold.methods.step import Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import Windows, smallest_first, windowed, windows_of
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap

LOCATIONS = ("1d", "2d")

PLANE = (1, 1)
"""What a grid looks like on which there are windows."""


@register("lgtm")
@dataclass(frozen=True)
class LGTM(Late):
    """Local-global token merging after `skip` dense blocks (default: a sixth of the depth).

    window: side of the first window (default: half the side of the patch grid); it grows by one
        per local block.
    location: how merged tokens are laid out on the grid again: by their mean row-major position
        (`1d`), or by mean row, then mean column (`2d`).
    """

    pads: ClassVar[bool] = False
    gridded: ClassVar[bool] = True

    window: int | None = None
    location: str = "1d"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            check_whole("window", self.window, least=2)
        check_choice("location", self.location, LOCATIONS)

    def check(self, layout: Layout) -> None:
        if layout.grid is not None and len(layout.grid) != len(PLANE):
            axes = " x ".join(map(str, layout.grid))
            raise MethodError(f"LGTM merges in windows of an image: a grid of {axes} has none")

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        # Whole numbers: a compiled graph is for one grid, as its windows are.
        self.check(layout)
        height, width = layout.grid or PLANE  # patch dropout leaves no grid: a square
        grid, patches = (int(height), int(width)), int(layout.patches)
        first = self.first(layout.depth)
        side = self.window or max(2, _ceil_root(patches, 1) // 2)
        local = True
        steps: list[Step | None] = []
        for block, r in enumerate(schedule):
            local = local and side * side <= patches
            if block < first:
                steps.append(None)
                continue
            if local:
                windows = _windows(patches, grid, side, r)
                removes, side = sum(windows.merges), side + 1
                step = self._merge_locally(windows, removes, block)
            else:
                removes = min(r, patches // 2)
                step = self.merge(block, removes)
            patches -= removes
            steps.append(step if removes else None)
        return tuple(steps)

    def _merge_locally(self, windows: Windows, removes: int, block: int) -> Step:
        def match(metric: Tensor, state: TokenState) -> TokenMap:
            order = self._order(metric, state, windows.columns)
            return windowed(metric, windows, state.prefix, order)

        return Step(self.cue, removes, match, self.seed + block)

    def _order(self, metric: Tensor, state: TokenState, columns: int) -> Tensor:
        """`[B, n]`: the patch tokens as they lie on the grid, row by row."""
        place = torch.arange(state.tokens - state.prefix, device=metric.device)
        if not state.maps:
            return place.expand(metric.shape[0], -1)
        width = state.grid[1] if state.grid else 1
        if self.location == "1d":
            return smallest_first(_mean_place(place, metric, state))
        by_row = smallest_first(_mean_place(place // width, metric, state))
        line = torch.arange(by_row.shape[1], device=by_row.device) // columns
        column = _mean_place(place % width, metric, state).gather(1, by_row)
        return by_row.gather(1, smallest_first(line * width + column))


def _mean_place(place: Tensor, metric: Tensor, state: TokenState) -> Tensor:
    """`[B, n]`: the mean of `place[N]` over the original patches that each token stands for.

    Sums of ints over a count: equal means come out equal, bit for bit.
    """
    total = torch.cat([place.new_zeros(state.prefix), place]).expand(metric.shape[0], -1)
    for step in state.maps:
        total = step.fold_sizes(total)
    return total[:, state.prefix :] / state.sizes()[:, state.prefix :]


def _windows(patches: int, grid: tuple[int, int], side: int, r: int) -> Windows:
    """`r` merges spread over the windows of a grid for `patches` tokens, shaped like `grid`."""
    height, width = grid
    rows, columns = _ceil_root(patches * height, width), _ceil_root(patches * width, height)
    return windows_of(patches, rows, columns, side, r)


def _ceil_root(over: int, under: int) -> int:
    """The smallest int whose square is at least `over / under`."""
    root = 0
    while root * root * under < over:
        root += 1
    return root
