"""ToMeAround: every block sees merged tokens, and the residual stream keeps all."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.methods.base import Method
from vitfold.methods.checks import check_skip, check_switch, check_whole
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import Windows, bipartite, windowed, windows_of
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap

MANY_PATCHES = 1024
"""Above so many patches, comparing all with all would cost more than it is worth."""

NEAR = 16
"""The side of the windows in which they merge then."""


@register("tome-around")
@dataclass(frozen=True)
class ToMeAround(Method):
    """Every block sees the tokens that enter it with the `r` most similar merged, and what it adds
    to a merged token is added to all that it stands for: no token ever leaves.

    skip: how many of the first blocks stay dense.
    proportional: whether a token of size s counts s times in attention.
    window: side of the windows of the patch grid in which tokens merge, as many in each; 0: over
        all (default: 16 where there are more than 1,024 patches, else over all).
    """

    restores: ClassVar[bool] = True

    skip: int = 0
    proportional: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_skip(self.skip)
        check_switch("proportional", self.proportional)
        if self.window is not None:
            check_whole("window", self.window, least=0)

    def first(self, depth: int) -> int:
        return self.skip

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        return tuple(self._step(layout, r) for r in schedule)

    def _step(self, layout: Layout, r: int) -> "Around | None":
        most = layout.patches // 2
        if not r or not most:
            return None
        side = self._side(layout)
        if not side:
            return Around(aside=min(r, most))
        rows, columns = (int(length) for length in layout.grid or ())
        windows = windows_of(int(layout.patches), rows, columns, side, min(r, most))
        aside = sum(windows.merges)
        return Around(aside=aside, windows=windows) if aside else None

    def _side(self, layout: Layout) -> int:
        """The side of the windows; 0 where tokens merge over all, as they also do where they form
        no plane, or a smaller one."""
        if layout.grid is None or len(layout.grid) != 2 or 0 in layout.grid:
            return 0
        side = NEAR * (layout.patches > MANY_PATCHES) if self.window is None else self.window
        return side if side < max(layout.grid) else 0


@dataclass(frozen=True)
class Around(Step):
    """Merges before the block, by what enters it, and unmerges what the block adds.

    windows: those in which tokens merge; None: over all.
    """

    windows: Windows | None = None

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        metric, rows = state.padded(x.detach())
        merged, inside = state.apply(x, self._map(metric, rows))
        return merged, inside.noting((x, merged, state))

    def _map(self, metric: Tensor, state: TokenState) -> TokenMap:
        if self.windows is None or state.valid is not None:
            return bipartite(metric, self.aside, state.prefix, state.valid)
        patches = torch.arange(self.windows.patches, device=metric.device)
        order = patches.expand(metric.shape[0], -1)
        return windowed(metric, self.windows, state.prefix, order)

    def leave(self, x: Tensor, inside: TokenState) -> tuple[Tensor, TokenState]:
        before, merged, state = inside.notes
        added = x - merged
        for step in reversed(inside.maps[len(state.maps) :]):
            added = step.unfold(added)
        return before + added, state.restored(inside.noting(None))
