"""Regions: from what a block takes to its sequences, and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitfold.tokens.regions import Batched, MapFirst, MapWindows, Regions

few = st.integers(1, 9)


def check(regions: Regions, x: Tensor, grid: tuple[int, int], tokens: int) -> None:
    """Every token is in one sequence, where `places` says, and together they are what there was."""
    parts = regions.parts(grid)
    rows = [part.apart(regions.turned(x)) for part in parts]
    assert torch.equal(regions.together(rows, grid), x)
    places = [regions.places(part, grid, x.device) for part in parts]
    assert sorted(torch.cat([p.flatten() for p in places]).tolist()) == list(range(tokens))
    for part, own, place in zip(parts, rows, places, strict=True):
        assert own.shape[:2] == (len(x[:1]) * 2 * part.number, place.shape[1]) or x.dim() == 3
        assert place.shape == (part.number, part.prefix + part.grid[0] * part.grid[1])
    assert regions.joined(x).shape[1] == tokens


@given(height=few, width=few, side=st.integers(0, 5), first=st.booleans())
def test_windows_of_a_map(height: int, width: int, side: int, first: bool) -> None:
    cells = torch.arange(2 * height * width * 3).view(2, height, width, 3)
    regions = MapFirst(side) if first else MapWindows(side)
    check(regions, cells.permute(0, 3, 1, 2) if first else cells, (height, width), height * width)
    for part in regions.parts((height, width)):
        number = regions.places(part, (height, width), None)
        rows, columns = number // width, number % width
        for lines, length in ((rows, part.grid[0]), (columns, part.grid[1])):
            assert (lines.amax(1) - lines.amin(1)).eq(length - 1).all()
            assert not side or (lines.amin(1) % side == 0).all()


@given(
    down=st.integers(1, 3), across=st.integers(1, 3), side=st.integers(1, 3), own=st.integers(0, 2)
)
@pytest.mark.parametrize("joint", [True, False])
def test_windows_that_come_as_a_batch(
    joint: bool, down: int, across: int, side: int, own: int
) -> None:
    windows, each = side**2, own + down * across
    x = torch.arange(2 * windows * each * 3).view(2 * windows, each, 3)
    grid = (side * down, side * across)
    check(Batched(side, own, joint), x, grid, windows * each)
