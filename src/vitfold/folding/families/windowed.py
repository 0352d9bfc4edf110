"""What families share whose blocks attend in windows of a map, or over all of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, third
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.relative import Relative, attending, heads_of
from vitfold.folding.families.base import Family
from vitfold.folding.families.common import Grid
from vitfold.tokens.layout import Layout, Sequences
from vitfold.tokens.regions import MapWindows, Part, Regions


class Windowed(Family):
    """Base of families whose blocks see the tokens of an image in sequences that attend each by
    itself. What a block reduces is there again after it: a merged token shows on all places that it
    stands for."""

    prefix: Any = 0
    class_token: Any = False
    reads_patches: Any = True

    def regions(self, block: Any) -> Regions:
        """The sequences of a block: windows of so many tokens along each side, or the whole map
        where that is zero."""
        return MapWindows(int(block.window_size))

    def behind(self, block: Any, x: Tensor) -> Tensor:
        """What a block does after both halves, on what it takes."""
        return x

    def kind(self, block: nn.Module) -> BlockKind | None:
        kind = super().kind(block)
        if kind is None:
            return None
        behind = None if type(self).behind is Windowed.behind else self.behind
        return replace(kind, regions=self.regions(block), behind_regions=behind)

    def layout_of(self, grid: Grid) -> Layout:
        whole = super().layout_of(grid)
        return replace(whole, within=tuple(self.within(block, whole) for block in self.blocks))

    def within(self, block: Any, whole: Layout) -> tuple[Sequences, ...]:
        """The sequences that a block sees of images with such a layout."""
        parts = self.regions(block).parts(whole.grid or (0, 0))
        return tuple(Sequences(part.number, _layout(part, whole)) for part in parts)


def _layout(part: Part, whole: Layout) -> Layout:
    """The layout of one sequence."""
    tokens = part.prefix + math.prod(part.grid)
    return replace(whole, tokens=tokens, prefix=part.prefix, grid=part.grid)


class RelativeWindowed(Windowed):
    """Base of families with SAM's attention: one projection, and positions along the rows and the
    columns of a map, by which queries are multiplied."""

    def attended(self, block: Any, attention: Any, x: Tensor, attend: Attend) -> Tensor:
        """What attention adds, of normalized tokens `x[S, n, C]`. A merged token keeps the position
        of the one it went into; what pads a window, whose keys are all the same, is one key."""
        height, width = (int(length) for length in attend.state.grid or (0, 0))
        side = int(block.window_size)
        relative = Relative(
            self.tables(attention),
            (height, width),
            (side, side) if side else (height, width),
            attend.state.origin,
            attend.sizes(x) if attend.proportional else None,
        )
        out = attend.by(attending(relative, attention.qkv.bias), attention, x)
        if attend.received is not None:  # what padding received matters to nobody
            attend.received = attend.received[:, : x.shape[1]]
        return out

    def tables(self, attention: Any) -> tuple[Tensor, Tensor] | None:
        """Parameters for distances along rows and along columns, where attention has such."""
        return (attention.rel_pos_h, attention.rel_pos_w) if attention.use_rel_pos else None

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        return {"qkv": showing(attention.qkv, third(cue, heads_of(attention), show))}

    def fused(self, attention: Any) -> Mapping[str, Any]:
        """Nothing: `attended` calls torch's attention anyway."""
        return {}
