"""Plots: a colour for every method, and nothing empty."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib.axes
import matplotlib.figure
import pytest

from vitfold.lab import plots
from vitfold.lab.styles import BASELINES, GREY, ORDER, SMALLER_IMAGES, style
from vitfold.methods import METHODS

Figures = list[matplotlib.figure.Figure]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Figures:
    """The figures that are finished, as they are then."""
    kept: Figures = []

    def finish(figure: matplotlib.figure.Figure, path: Path | None) -> str:
        kept.append(figure)
        return ""

    monkeypatch.setattr(plots, "finish", finish)
    return kept


def point(cost: float, value: float) -> plots.Point:
    return cost, value, value - 0.01, value + 0.01


def curves(axes: matplotlib.axes.Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def test_a_method_keeps_its_colour_whatever_is_beside_it(figures: Figures) -> None:
    alone = {"ward": [point(1, 0.9)]}
    beside = {name: [point(1, 0.9), point(2, 0.91)] for name in ("tome", "lgtm", "ward")}
    plots.pareto(None, alone, None, "cost", "accuracy")
    plots.pareto(None, beside, point(3, 0.95), "cost", "accuracy")
    plots.tokens({"drop": {"0.50": [9, 5]}, "ward": {"0.50": [9, 4], "0.75": [9, 8]}})
    first, second = (curves(figure.axes[0])["ward"].get_color() for figure in figures[:2])
    shares = {line.get_color() for line in figures[2].axes[1].get_lines()}
    assert {first, second, *shares} == {style("ward").colour}


def test_no_two_methods_look_the_same() -> None:
    ours = [name for name, method in METHODS.items() if method.__module__.startswith("vitfold.")]
    for names in (ORDER, ours):
        looks = [style(name) for name in names]
        assert len({look.colour for look in looks}) == len(names)
    assert style("ltmp r=3").colour == style("ltmp").colour
    assert style(SMALLER_IMAGES) != style("smaller model vit_tiny")


def test_baselines_are_grey_and_nothing_else_is() -> None:
    first, second = map(style, BASELINES)
    assert first != second
    assert first.colour == second.colour == GREY
    assert GREY not in {style(name).colour for name in ORDER}


def test_curves_on_each_other_can_be_told_apart(figures: Figures) -> None:
    same = [point(1, 0.9), point(2, 0.95)]
    plots.pareto(None, dict.fromkeys(("tome", "dfe", "ward"), same), None, "cost", "accuracy")
    axes = figures[0].axes[0]
    lines = curves(axes).values()
    assert len({line.get_marker() for line in lines}) == 3
    assert len({str(line._dash_pattern) for line in lines}) == 3  # no public name tells dashes
    assert all(line.get_markerfacecolor() == "none" for line in lines)
    heights = sorted(text.xyann[1] for text in axes.texts)  # type: ignore[attr-defined]
    assert len(heights) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0


def test_labels_that_are_near_move_apart_and_others_stay() -> None:
    places = plots.apart({"a": 0.90, "b": 0.905, "c": 0.2}, 0.1)
    assert places["c"] == 0.2
    assert places["b"] - places["a"] == pytest.approx(0.1)
    assert places["a"] + places["b"] == pytest.approx(1.805)


STEP = {"step": 10, "share": 0.7, "share_asked": 0.6, "tokens": [9.0, 7.0]}


def test_thresholds_that_are_all_zero_get_no_panel(figures: Figures) -> None:
    last = STEP | {"merge_threshold": [0.5, 0.4], "prune_threshold": [0.0, 0.0]}
    plots.learned(Path("unused.png"), [last])
    labels = [axes.get_ylabel() for axes in figures[0].axes]
    assert labels == ["share of the dense FLOPs", "merge threshold", "tokens"]
    assert figures[0].get_suptitle() == "prune threshold: 0 in every block"
    assert all(axes.patches or axes.get_lines() for axes in figures[0].axes)
    plots.learned(Path("unused.png"), [last | {"prune_threshold": [0.0, 1e-5]}])
    assert len(figures[1].axes) == 4
    assert figures[1].get_suptitle() == ""
