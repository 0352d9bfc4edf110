"""Fit to FLOPs: the one root finder, on families whose costs are known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfold.folding.fit import CLOSE, NEAR, Fit

FAMILIES: dict[str, Callable[[float], float]] = {
    "line": lambda number: 1 - number,
    "early": lambda number: math.exp(-9 * number),
    "late": lambda number: 1 - number**6,
    "steps": lambda number: 1 - round(number * 500) / 500,
}
"""The cost of every member, from 1 at number 0 to about 0 at number 1."""


@pytest.mark.parametrize("name", FAMILIES)
@given(share=st.floats(0.05, 0.95), start=st.floats(0.05, 1.0))
def test_a_share_is_found_along_a_family(name: str, share: float, start: float) -> None:
    fit = Fit[float](share, FAMILIES[name])
    low = fit.along(lambda number: number, start, 1.0, tries=20)
    assert fit.miss <= NEAR
    assert FAMILIES[name](fit.best) == fit.nearest
    assert fit.excess(low) > 0
    assert len(fit.costs) <= 21


def test_nothing_is_tried_twice() -> None:
    tried: list[int] = []

    def cost(number: int) -> float:
        tried.append(number)
        return 1 - number / 10

    fit = Fit[int](0.5, cost)
    fit.costs[0] = 1.0
    fit.along(round, 1.0, 10.0)
    fit.along(round, 2.0, 10.0)
    assert len(tried) == len(set(tried))
    assert 0 not in tried
    assert (fit.best, fit.nearest, fit.miss) == (5, 0.5, 0.0)


def test_what_no_member_costs_ends_at_the_nearest() -> None:
    fit = Fit[float](0.1, lambda number: 1 - number / 2)
    assert fit.along(lambda number: number, 0.2, 1.0) == 1.0
    assert (fit.best, fit.nearest) == (1.0, 0.5)
    assert fit.miss == pytest.approx(0.4)


def test_a_share_above_all_members_is_number_zero() -> None:
    fit = Fit[float](1.0, lambda number: 0.9 - number)
    assert fit.along(lambda number: number, 0.5, 1.0) == 0.0
    assert fit.best == 0.0


def test_a_family_that_costs_the_same_for_a_while_is_looked_at_to_its_end() -> None:
    fit = Fit[float](0.5, lambda number: 1.0 if number < 3 else 1 - (number - 3) / 13)
    fit.along(lambda number: number, 1.0, 16.0)
    assert fit.miss <= CLOSE
