"""Windows that slide over images."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.segment import segmenter
from torch import Tensor

from vitfold.errors import DataError
from vitfold.segment import (
    slide,
)
from vitfold.segment.windows import corners

sizes = st.integers(1, 40)


@given(length=sizes, window=st.integers(1, 20), data=st.data())
def test_windows_cover_an_axis(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    starts = corners(length, window, stride)
    visits = {pixel for start in starts for pixel in range(start, start + window)}
    assert set(range(length)) <= visits
    assert starts == sorted(set(starts))
    assert max(visits) < max(length, window)


@settings(deadline=None, max_examples=50)
@given(height=sizes, width=sizes, window=st.tuples(st.integers(3, 12), st.integers(3, 12)),
       data=st.data())  # fmt: skip
def test_sliding_says_of_each_pixel_what_its_windows_say(
    height: int, width: int, window: tuple[int, int], data: st.DataObject
) -> None:
    """A model that looks at one pixel at a time gives the same as on the whole image; one that
    says one number a window, the mean over those that see the pixel."""
    stride = data.draw(st.none() | st.integers(1, min(window)))
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    output = slide(lambda x: x[:, :2] * 2, images, window, stride)
    torch.testing.assert_close(output, images[:, :2] * 2)
    numbers = itertools.count(1)
    total, visits = torch.zeros(2, height, width), torch.zeros(height, width)
    for y in corners(height, window[0], stride or window[0]):
        for x in corners(width, window[1], stride or window[1]):
            part = (slice(y, y + window[0]), slice(x, x + window[1]))
            for image in range(2):
                total[(image, *part)] += next(numbers)
            visits[part] += 1
    numbers = itertools.count(1)

    def number(some: Tensor) -> Tensor:
        result = torch.tensor([float(next(numbers)) for _ in some])
        return result[:, None, None, None].expand(-1, 1, *some.shape[-2:])

    torch.testing.assert_close(slide(number, images.float(), window, stride)[:, 0], total / visits)


def test_a_stride_beyond_the_window_is_refused() -> None:
    for stride in (9, 0, 2.5, "4", True):
        with pytest.raises(DataError, match="expected 1 to 8"):
            slide(lambda x: x, torch.zeros(1, 3, 20, 20), (8, 12), stride)  # type: ignore[arg-type]
    assert slide(segmenter(), torch.zeros(0, 3, 60, 50), (48, 48)).shape == (0, 4, 60, 50)
