"""PruneMerge: matrices merge patches before a block and restore them after it, alike for all
images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.base import Base
from vitfold.methods.checks import (
    check_blocks,
    check_choice,
    check_number,
    check_switch,
    whole_numbers,
)
from vitfold.methods.prune_merge.matrices import Matrices
from vitfold.methods.prune_merge.structure import GROUPINGS, SCOPES, Groups, groups
from vitfold.methods.recipe import MethodRecipe
from vitfold.methods.registry import register
from vitfold.tokens.layout import Grid

FOUND = "{}: find the scores by PruneMerge.search(model, loader), which gives the whole method"


DIGITS = 4
"""How many of a score are kept: a plan stays small, and no rank depends on more."""


@register("prune-merge")
@dataclass(frozen=True)
class PruneMerge(Base):
    """Blocks see mixtures of patches, and what they do to those is spread over the patches again;
    the least important patches go around them. `PruneMerge.search` makes one for a model.

    keep: the share of patches that stay alone.
    prune: the share that goes around.
    blocks: which blocks of the model, by number from 0.
    scope: whether those are shares of all patches in all these blocks (`global`), or of each
        block's (`block`).
    grouping: what merges: all between two that stay (`runs`), or each with the nearer of the two
        along its row of the grid (`centers`).
    shortcut: whether what goes around a block comes back after it; it is lost otherwise.
    grid: height and width of the patch grid.
    scores: how important each patch is in each of those blocks.
    """

    pads: ClassVar[bool] = False
    command: ClassVar[str] = "search"
    sought: ClassVar[tuple[str, ...]] = ("flops", "iterations")
    training: ClassVar[MethodRecipe] = MethodRecipe(
        epochs=30, optimizer={"opt": "adamw", "lr": 1e-4}, temperature=20.0
    )

    search: ClassVar[Callable[..., "PruneMerge"]]
    """Bound in vitfold.tools.prune_merge.search, as it takes a model."""

    keep: float = 0.6
    prune: float = 0.1
    blocks: tuple[int, ...] | None = None
    scope: str = "global"
    grouping: str = "runs"
    shortcut: bool = True
    grid: Grid | None = field(default=None, repr=False)
    scores: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("keep", self.keep, 0, 1)
        check_number("prune", self.prune, 0, 1)
        if self.keep + self.prune > 1:
            raise MethodError(
                f"keep={self.keep!r}, prune={self.prune!r}: expected at most 1 together"
            )
        check_choice("scope", self.scope, SCOPES)
        check_choice("grouping", self.grouping, GROUPINGS)
        check_switch("shortcut", self.shortcut)
        _settle(self, "blocks", whole_numbers("blocks", self.blocks))
        _settle(self, "grid", _grid(self.grid))
        _settle(self, "scores", _scores(self.scores))
        if self.blocks is not None and sorted(set(self.blocks)) != list(self.blocks):
            raise MethodError(f"blocks={list(self.blocks)}: expected rising numbers")
        if self.scores is not None:
            self._check_scores(self.scores)

    def _check_scores(self, scores: tuple[tuple[float, ...], ...]) -> None:
        if self.blocks is None or self.grid is None:
            raise MethodError(FOUND.format("scores without blocks and grid"))
        if len(scores) != len(self.blocks):
            raise MethodError(f"{len(scores)} rows of scores for {len(self.blocks)} blocks")
        patches = math.prod(self.grid)
        for block, row in zip(self.blocks, scores, strict=True):
            if len(row) != patches:
                raise MethodError(f"{len(row)} scores for the {patches} patches of block {block}")

    @property
    def structure(self) -> dict[int, Groups]:
        """The groups of every block that is compressed; where all patches stay alone, it is not."""
        if self.scores is None or self.blocks is None or self.grid is None:
            raise MethodError(FOUND.format("PruneMerge without scores"))
        slots = groups(
            self.scores,
            self.blocks,
            self.keep,
            self.prune,
            self.scope,
            self.grouping,
            self.grid[1],
        )
        named = zip(self.blocks, slots, strict=True)
        return {block: group for block, group in named if max(group) + 1 < len(group)}

    def resize(self, grid: Sequence[int]) -> "PruneMerge":
        """The same for images of another size: the scores of its patches lie between those that
        were found, and what merges follows from them. Matrices start from there, not from what was
        learned. `flops` that a search reached may be missed by a little: shares stay those of
        patches.

        grid: height and width, in patches.
        """
        sides = _grid(grid)
        if sides is None or self.scores is None or self.grid is None:
            raise MethodError(FOUND.format("PruneMerge without scores"))
        scores = torch.tensor(self.scores, dtype=torch.float64).view(-1, 1, *self.grid)
        moved = F.interpolate(scores, sides, mode="bilinear", antialias=True)
        rows = rounded(moved.clamp(min=0).flatten(1))
        return replace(self, grid=sides, scores=rows)

    def learn(self, depth: int, width: int) -> "Matrices":
        check_blocks(self.blocks, depth)
        scores = dict(zip(self.blocks or (), self.scores or (), strict=True))
        return Matrices(self.structure, scores, self.grid or (0, 0), self.shortcut)


def rounded(scores: Tensor) -> tuple[tuple[float, ...], ...]:
    """`[blocks, patches]` with as many digits as matter."""
    return tuple(tuple(float(f"{score:.{DIGITS}g}") for score in row) for row in scores.tolist())


def _settle(method: PruneMerge, name: str, value: object) -> None:
    """Lists that a caller may change later, or that come from JSON, as tuples."""
    object.__setattr__(method, name, value)


def _grid(value: object) -> Grid | None:
    sides = whole_numbers("grid", value)
    if sides is None:
        return None
    if len(sides) != 2 or min(sides) < 1:
        raise MethodError(f"grid={list(sides)}: expected height and width")
    return sides[0], sides[1]


def _scores(rows: object) -> tuple[tuple[float, ...], ...] | None:
    if rows is None:
        return None
    if not isinstance(rows, list | tuple):
        raise MethodError(f"scores={rows!r}: expected rows of numbers")
    for block, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise MethodError(f"scores[{block}]={row!r}: expected a row of numbers")
        for patch, score in enumerate(row):
            check_number(f"scores[{block}][{patch}]", score, 0, MOST)
    return tuple(tuple(float(score) for score in row) for row in rows)


MOST = 1e30
"""More than any score."""
