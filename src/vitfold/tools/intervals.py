"""Intervals around shares and means over images."""

import math
from typing import NamedTuple

from torch import Tensor

CONFIDENT = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


class Estimate(NamedTuple):
    """A mean over images, and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(hits: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z2 = hits / images, CONFIDENT**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    spread = math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    half = CONFIDENT * spread / (1 + z2 / images)
    # Rounding must not leave the share itself outside at either end.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def mean_of(values: Tensor, least: float, most: float) -> Estimate:
    """The mean of values within bounds, with a normal interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, least, most)  # of one image nothing is known of the others
    half = CONFIDENT * float(values.std()) / math.sqrt(len(values))
    return Estimate(mean, max(least, mean - half), min(most, mean + half))


def share_of(values: Tensor) -> Estimate:
    """The mean of shares; of yes and no, Wilson's interval, which holds at the ends too."""
    if not bool(((values == 0) | (values == 1)).all()):
        return mean_of(values, 0, 1)
    hits = int(values.sum())
    return Estimate(hits / len(values), *interval(hits, len(values)))
