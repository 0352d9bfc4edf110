"""Regions: how the tokens that a block takes lie in sequences that each attend by itself."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.tokens.layout import Grid


@dataclass(frozen=True)
class Part:
    """Sequences of an image that are alike.

    number: how many there are.
    grid: of the patches of one.
    prefix: how many of its tokens are no patches; they come first.
    """

    number: int
    grid: Grid
    prefix: int = 0

    def apart(self, x: Tensor) -> Tensor:
        """`[B * number, n, C]` from what a block takes, those of an image after each other."""
        raise NotImplementedError


class Regions:
    """The parts of what a block takes."""

    def joined(self, x: Tensor) -> Tensor:
        """`[B, N, C]`: all tokens of the images, in any order."""
        raise NotImplementedError

    def turned(self, x: Tensor) -> Tensor:
        """What parts are taken out of, from what the block takes."""
        return x

    def parts(self, grid: Grid) -> Sequence[Part]:
        """The parts of images with that grid of patches."""
        raise NotImplementedError

    def together(self, rows: Sequence[Tensor], grid: Grid) -> Tensor:
        """What the block takes, from the sequences of all parts."""
        raise NotImplementedError

    def places(self, part: Part, grid: Grid, device: torch.device | None) -> Tensor:
        """`[number, n]`: which token of an image each is: those that are no patches come first of
        all, then patches row by row."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Windows(Part):
    """Windows of a map `[B, H, W, C]` that lie in a rectangle of it.

    top, left: where that begins.
    across: how many windows lie beside each other.
    """

    top: int
    left: int
    across: int

    @property
    def down(self) -> int:
        """How many windows lie below each other."""
        return self.number // self.across

    def apart(self, x: Tensor) -> Tensor:
        height, width = self.grid
        rows = slice(self.top, self.top + self.down * height)
        columns = slice(self.left, self.left + self.across * width)
        cut = x[:, rows, columns].unflatten(2, (-1, width)).unflatten(1, (-1, height))
        sequences: Tensor = cut.transpose(2, 3).flatten(3, 4).flatten(0, 2)
        return sequences

    def together(self, rows: Tensor) -> Tensor:
        """`[B, height, width, C]`: the rectangle."""
        cut = rows.unflatten(1, self.grid).unflatten(0, (-1, self.down, self.across))
        rectangle: Tensor = cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return rectangle


@dataclass(frozen=True)
class MapWindows(Regions):
    """Square windows of a map `[B, H, W, C]`, of which those at its end may be cut off.

    side: how many tokens lie along a window; 0: the whole map is one.
    """

    side: int

    def joined(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def parts(self, grid: Grid) -> Sequence[Windows]:
        return [
            Windows(down * across, (height, width), top=top, left=left, across=across)
            for top, down, height in self._spans(grid[0])
            for left, across, width in self._spans(grid[1])
        ]

    def _spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Where windows of one length begin along an axis, how many there are, and their length."""
        side = self.side or length
        whole, rest = divmod(length, side)
        if whole:
            yield 0, whole, side
        if rest:
            yield whole * side, 1, rest

    def together(self, rows: Sequence[Tensor], grid: Grid) -> Tensor:
        parts = zip(self.parts(grid), rows, strict=True)
        pieces = [part.together(own) for part, own in parts]
        beside = len(list(self._spans(grid[1])))
        starts = range(0, len(pieces), beside)
        return torch.cat([torch.cat(pieces[at : at + beside], dim=2) for at in starts], dim=1)

    def places(self, part: Part, grid: Grid, device: torch.device | None) -> Tensor:
        cells = torch.arange(math.prod(grid), device=device).view(1, *grid, 1)
        return part.apart(cells).squeeze(-1)


@dataclass(frozen=True)
class MapFirst(MapWindows):
    """Windows of a map `[B, C, H, W]`."""

    def joined(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def turned(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def together(self, rows: Sequence[Tensor], grid: Grid) -> Tensor:
        return super().together(rows, grid).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Joint(Part):
    """All windows of images that come as a batch of windows, as one sequence: what is no patch in
    each of them comes first.

    windows: how many an image has.
    own: how many tokens of a window are no patches.
    """

    windows: int
    own: int

    def apart(self, x: Tensor) -> Tensor:
        image = x.unflatten(0, (-1, self.windows))
        parts = image[:, :, : self.own], image[:, :, self.own :]
        return torch.cat([part.flatten(1, 2) for part in parts], dim=1)

    def together(self, rows: Tensor) -> Tensor:
        """The windows again."""
        parts = rows[:, : self.prefix], rows[:, self.prefix :]
        image = [part.unflatten(1, (self.windows, -1)) for part in parts]
        return torch.cat(image, dim=2).flatten(0, 1)


@dataclass(frozen=True)
class Each(Part):
    """Windows that are a batch already."""

    def apart(self, x: Tensor) -> Tensor:
        return x

    def together(self, rows: Tensor) -> Tensor:
        """The windows again: those."""
        return rows


@dataclass(frozen=True)
class Batched(Regions):
    """Windows that come as a batch, `[B * windows, n, C]`, each with tokens in front that are no
    patches.

    side: how many windows lie along each side of the grid.
    own: how many of the tokens of a window are no patches.
    joint: whether all windows of an image are one sequence.
    """

    side: int
    own: int
    joint: bool

    @property
    def windows(self) -> int:
        """How many windows an image has."""
        return self.side**2

    def joined(self, x: Tensor) -> Tensor:
        image: Tensor = x.unflatten(0, (-1, self.windows)).flatten(1, 2)
        return image

    def parts(self, grid: Grid) -> Sequence[Joint | Each]:
        if self.joint:
            first = self.own * self.windows
            return [Joint(1, grid, first, windows=self.windows, own=self.own)]
        height, width = grid
        return [Each(self.windows, (height // self.side, width // self.side), self.own)]

    def together(self, rows: Sequence[Tensor], grid: Grid) -> Tensor:
        [part], [own] = self.parts(grid), rows
        return part.together(own)

    def places(self, part: Part, grid: Grid, device: torch.device | None) -> Tensor:
        first = torch.arange(self.own * self.windows, device=device)
        cells = self.cells(torch.arange(math.prod(grid), device=device), grid)
        rows = torch.cat([first.view(self.windows, -1), cells + len(first)], dim=1)
        return part.apart(rows.unsqueeze(-1)).squeeze(-1)

    def cells(self, order: Tensor, grid: Grid) -> Tensor:
        """`[windows, n]`: the numbers of patches, row by row of the grid, in every window."""
        height, width = grid
        parts = order.view(self.side, height // self.side, self.side, width // self.side)
        return parts.transpose(1, 2).flatten(0, 1).flatten(1)
