"""Plots. matplotlib comes with the extra `report`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfold.errors import DataError, missing
from vitfold.files import whole, writing

Point = tuple[float, float, float, float]
"""Cost, accuracy, and the ends of its interval."""


def pareto(
    path: Path | None,
    series: Mapping[str, Sequence[Point]],
    dense: Point | None,
    across: str,
    up: str,
) -> str:
    """Accuracy against cost: a line for every method, the dense model as a star."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in series.items():
        cost, value, low, high = zip(*sorted(points), strict=True)
        line = axes.plot(cost, value, marker="o", label=name)[0]
        axes.fill_between(cost, low, high, color=line.get_color(), alpha=0.08)
    if dense is not None:
        axes.plot(dense[0], dense[1], marker="*", markersize=14, color="black", label="dense")
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    if series or dense is not None:
        axes.legend()
    return finish(figure, path)


def lines(
    series: Mapping[str, Sequence[float]], across: str, up: str, path: Path | None = None
) -> str:
    """Values by number, from zero: a line for every name."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, values in series.items():
        axes.plot(range(len(values)), values, marker=".", label=name)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        columns = -(-len(series) // 16)
        axes.legend(fontsize="x-small", ncols=columns)
    return finish(figure, path)


def learned(path: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """How thresholds were learned: the share of the FLOPs from step to step; at the end, thresholds
    and tokens by block."""
    plt = pyplot()
    told = [figures for figures in steps if "share" in figures]
    last = told[-1]
    names = [name for name in last if name.endswith("_threshold")]
    figure, axes = plt.subplots(1, 2 + len(names), figsize=(5 + 3.2 * len(names), 3.4))
    number = [figures["step"] for figures in told]
    axes[0].plot(number, [figures["share"] for figures in told], label="reached")
    axes[0].plot(number, [figures["share_asked"] for figures in told], "--", label="asked")
    axes[0].set(xlabel="step", ylabel="share of the FLOPs")
    axes[0].legend()
    for name, place in zip([*names, "tokens"], axes[1:], strict=True):
        place.bar(range(len(last[name])), last[name])
        place.set(xlabel="block", ylabel=name.replace("_", " "))
    figure.tight_layout()
    finish(figure, path)


def maps(pictures: Mapping[str, Any], path: Path | None = None) -> str:
    """Square maps of values side by side, on one scale of colours."""
    plt = pyplot()
    across = min(len(pictures), 6)
    down = -(-len(pictures) // across)
    size = (2.2 * across + 1, 2.4 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for place in axes.flat:
        place.set_axis_off()
    for (name, values), place in zip(pictures.items(), axes.flat, strict=False):
        shown = place.imshow(values, vmin=-1, vmax=1, cmap="viridis")
        place.set_title(name, fontsize="small")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    return finish(figure, path)


def finish(figure: Any, path: Path | None) -> str:
    """Write the figure where there is a path; give it as SVG where there is none."""
    plt = pyplot()
    try:
        if path is not None:
            with writing(path, DataError), whole(path) as part:
                figure.savefig(part, dpi=150)
            return ""
        out = io.StringIO()
        figure.savefig(out, format="svg")
        return out.getvalue()[out.getvalue().index("<svg") :]
    finally:
        plt.close(figure)


def pyplot() -> Any:
    """matplotlib, drawing to files."""
    try:
        import matplotlib
    except ImportError:
        raise missing("matplotlib", "report") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt
