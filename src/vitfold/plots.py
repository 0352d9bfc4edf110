"""Plots. matplotlib comes with the extra `report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfold.errors import missing

Point = tuple[float, float, float, float]
"""Cost, accuracy, and the ends of its interval."""


def pareto(
    path: Path, series: Mapping[str, Sequence[Point]], dense: Point, across: str, up: str
) -> None:
    """Accuracy against cost: a line for every method, the dense model as a star."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in series.items():
        cost, value, low, high = zip(*sorted(points), strict=True)
        line = axes.plot(cost, value, marker="o", label=name)[0]
        axes.fill_between(cost, low, high, color=line.get_color(), alpha=0.08)
    axes.plot(dense[0], dense[1], marker="*", markersize=14, color="black", label="dense")
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise missing("matplotlib", "report") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt
