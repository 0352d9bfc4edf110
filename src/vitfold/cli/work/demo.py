"""Every method on the embedded model, as `vitfold demo` shows it."""

from pathlib import Path

from torch import nn

from vitfold.cli import show
from vitfold.lab import demo as demo_
from vitfold.lab import plots
from vitfold.lab.report.columns import GFLOPS
from vitfold.lab.sweep import Row
from vitfold.lab.timing import busy, share_of_bound
from vitfold.tools import draw, results
from vitfold.tools.baselines import DENSE
from vitfold.tools.trace import trace
from vitfold.tools.validate import Report

COLUMNS = (
    "method", "accuracy", "95 %", "agrees", GFLOPS, "img/s", "x dense", "of bound",
)  # fmt: skip


def show_all(output: Path) -> None:
    """Tables, plot, pictures and figures, the last three in this directory."""
    with show.bar("folding", demo_.steps()) as progress:
        folds = list(demo_.rows(progress))
    rows = [row for row, _ in folds]
    show.table("digits, 12 blocks, 197 tokens", COLUMNS, [_cells(row) for row in rows])
    if (warning := busy({_name(row): row.speeds for row in rows})) is not None:
        show.note(warning)
    _plot(rows, output / "pareto.png")
    least = min(demo_.SHARES)
    _pictures({row.method: model for row, model in folds if row.flops == least}, output)
    results.write(output / "results.json", [row.to_json() for row in rows], {"command": "demo"})
    show.written(output / "results.json")


def _cells(row: Row) -> list[str]:
    report, [speed] = _report(row), row.speeds
    return [
        _name(row),
        f"{report.top1:.1%}",
        f"{report.top1_low:.0%}-{report.top1_high:.0%}",
        f"{report.agreement:.1%}",
        f"{row.gflops:.3f}",
        f"{speed.images_per_second:.0f}",
        f"{speed.speedup:.2f}",
        share_of_bound(speed),
    ]


def _name(row: Row) -> str:
    return row.method if row.method == DENSE else f"{row.method} {row.flops:.2f}"


def _plot(rows: list[Row], path: Path) -> None:
    methods = dict.fromkeys(row.method for row in rows[1:])
    series = {name: [_point(row) for row in rows if row.method == name] for name in methods}
    plots.pareto(
        path, series, _point(rows[0]), f"{GFLOPS} per image", "accuracy on held-out digits"
    )
    show.written(path)


def _point(row: Row) -> plots.Point:
    report = _report(row)
    return row.gflops, report.top1, report.top1_low, report.top1_high


def _report(row: Row) -> Report:
    assert row.report is not None  # digits have labels
    return row.report


def _pictures(models: dict[str, nn.Module], output: Path) -> None:
    images = demo_.picture_batch()
    for name, model in models.items():
        traced = trace(model, images)
        pictures = [traced.draw(number) for number in range(len(images))]
        plain = [draw.plain(image) for image in images]
        labels = ["image"] * len(plain) + [f"{name}, {traced.counts[-1][0]} tokens"] * len(pictures)
        path = output / f"tokens-{name}.png"
        draw.save(draw.row(plain + pictures, labels), path)
        show.written(path)
