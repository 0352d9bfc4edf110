"""Plots. matplotlib comes with the extra `report`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfold.errors import DataError, missing
from vitfold.files import whole, writing
from vitfold.lab.styles import DENSE_COLOUR, style

Point = tuple[float, float, float, float]
"""Cost, accuracy, and the ends of its interval."""

ABOVE = 3
"""Where curves begin in the order of what covers what: above grid and intervals."""

LABEL_GAP = 0.045
"""Between labels at the ends of curves, as a share of the height."""


def pareto(
    path: Path | None,
    series: Mapping[str, Sequence[Point]],
    dense: Point | None,
    across: str,
    up: str,
) -> str:
    """Accuracy against cost: a curve for every method, the dense model as a star.

    Curves that lie on each other stay apart to the eye: hollow markers of several shapes, dashes,
    and names at their ends. Intervals are thin bars behind them.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (name, points) in enumerate(series.items()):
        _curve(axes, name, sorted(points), ABOVE + number)
    if dense is not None:
        axes.plot(dense[0], dense[1], marker="*", markersize=15, color=DENSE_COLOUR, ls="none",
                  label="dense", zorder=ABOVE + len(series))  # fmt: skip
    _label_ends(axes, series, dense)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    if series or dense is not None:
        axes.legend(fontsize="small", handlelength=3.5)
    return finish(figure, path)


def _curve(axes: Any, name: str, points: Sequence[Point], layer: int) -> None:
    cost, value, low, high = zip(*points, strict=True)
    look = style(name)
    axes.vlines(cost, low, high, color=look.colour, alpha=0.25, linewidth=1)
    axes.plot(
        cost,
        value,
        color=look.colour,
        marker=look.marker,
        ls=look.line,
        linewidth=1.3,
        markersize=7,
        markerfacecolor="none",
        markeredgewidth=1.5,
        label=name,
        zorder=layer,
    )


def _label_ends(axes: Any, series: Mapping[str, Sequence[Point]], dense: Point | None) -> None:
    """The name of every curve at the end that is further from the dense model."""
    from matplotlib.transforms import offset_copy

    costs = [point[0] for points in series.values() for point in points]
    if not costs:
        return
    left = dense is None or abs(min(costs) - dense[0]) >= abs(max(costs) - dense[0])
    pick = min if left else max
    ends = {name: pick(points)[:2] for name, points in series.items()}
    low, high = axes.get_ylim()
    heights = apart({name: value for name, (_, value) in ends.items()}, LABEL_GAP * (high - low))
    for name, (cost, value) in ends.items():
        axes.annotate(
            name,
            (cost, value),
            xytext=(pick(costs), heights[name]),
            textcoords=offset_copy(axes.transData, axes.figure, -0.12 if left else 0.12),
            color=style(name).colour,
            fontsize="small",
            ha="right" if left else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "color": style(name).colour, "alpha": 0.4, "lw": 0.6},
        )
    axes.margins(x=0.14, y=0.1)


def apart(values: Mapping[str, float], gap: float) -> dict[str, float]:
    """The values in their order, those that are nearer than `gap` moved apart around their mean."""
    clusters: list[list[str]] = []
    for name in sorted(values, key=lambda name: values[name]):
        clusters.append([name])
        while len(clusters) > 1 and _overlap(values, clusters[-2], clusters[-1], gap):
            upper = clusters.pop()
            clusters[-1] += upper
    return {
        name: _middle(values, cluster) + (number - (len(cluster) - 1) / 2) * gap
        for cluster in clusters
        for number, name in enumerate(cluster)
    }


def _middle(values: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(values[name] for name in names) / len(names)


def _overlap(
    values: Mapping[str, float], lower: Sequence[str], upper: Sequence[str], gap: float
) -> bool:
    distance = _middle(values, upper) - _middle(values, lower)
    return distance < gap * (len(lower) + len(upper)) / 2


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


def tokens(series: Mapping[str, Mapping[str, Sequence[float]]], path: Path | None = None) -> str:
    """Tokens that leave every block: a panel for every method, a line for every share, the lighter
    the less it costs."""
    plt = pyplot()
    across = min(len(series), 3)
    down = -(-len(series) // across)
    size = (2.9 * across + 0.6, 2.3 * down + 0.4)
    figure, axes = plt.subplots(
        down, across, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for place in axes.flat[len(series) :]:
        place.set_axis_off()
    for (name, by_share), place in zip(series.items(), axes.flat, strict=False):
        look = style(name)
        for number, (share, counts) in enumerate(by_share.items()):
            strength = 1 - 0.75 * number / len(by_share)
            shade = {"color": look.colour, "alpha": strength}
            place.plot(range(len(counts)), counts, ".-", label=share, **shade)
        place.set_title(name, fontsize="small")
        place.xaxis.get_major_locator().set_params(integer=True)
        place.grid(alpha=0.3)
        place.legend(fontsize="xx-small", title="FLOPs", title_fontsize="xx-small")
    figure.supxlabel("block", fontsize="small")
    figure.supylabel("tokens", fontsize="small")
    return finish(figure, path)


def learned(path: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """How thresholds were learned: the share of the FLOPs from step to step; at the end, thresholds
    and tokens by block. Thresholds that are zero in every block are named, and not drawn."""
    plt = pyplot()
    logged = [figures for figures in steps if "share" in figures]
    last = logged[-1]
    thresholds = [name for name in last if name.endswith("_threshold")]
    names = [name for name in thresholds if any(last[name])]
    figure, axes = plt.subplots(
        1, 2 + len(names), figsize=(5 + 3.2 * len(names), 3.6), layout="constrained"
    )
    _shares(axes[0], logged)
    for name, place in zip([*names, "tokens"], axes[1:], strict=True):
        place.bar(range(len(last[name])), last[name])
        place.set(xlabel="block", ylabel=_spoken(name))
    if zero := [_spoken(name) for name in thresholds if name not in names]:
        figure.suptitle(f"{', '.join(zero)}: 0 in every block", fontsize="small")
    finish(figure, path)


def _shares(axes: Any, logged: Sequence[Mapping[str, Any]]) -> None:
    """The share of the FLOPs from step to step, beside the one that was asked for."""
    number = [figures["step"] for figures in logged]
    axes.plot(number, [figures["share"] for figures in logged], label="reached")
    axes.plot(number, [figures["share_asked"] for figures in logged], "--", label="asked for")
    axes.set(xlabel="step", ylabel="share of the dense FLOPs")
    axes.legend()


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def scatter(
    series: Mapping[str, Sequence[tuple[float, float]]],
    chosen: tuple[float, float] | None,
    across: str,
    up: str,
    path: Path | None = None,
) -> str:
    """Points by method, and a ring around the one that was chosen."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, points in series.items():
        look = style(name)
        axes.scatter(*zip(*points, strict=True), c=look.colour, marker=look.marker, label=name)
    if chosen is not None:
        axes.scatter(*chosen, s=220, facecolors="none", edgecolors="black", label="chosen")
    axes.axvline(1, color=DENSE_COLOUR, lw=0.8, alpha=0.5)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return finish(figure, path)


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
        picture = place.imshow(values, vmin=-1, vmax=1, cmap="viridis")
        place.set_title(name, fontsize="small")
    figure.colorbar(picture, ax=axes, shrink=0.8)
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
