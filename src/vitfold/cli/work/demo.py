"""What `vitfold demo` shows: speed at real size, tokens of photographs, accuracy on digits."""

from pathlib import Path

from torch import nn

from vitfold.cli import show
from vitfold.lab import plots
from vitfold.lab.demo import accuracy, photographs, speed
from vitfold.lab.report.columns import GFLOPS
from vitfold.lab.sweep import Row
from vitfold.tools import draw, results
from vitfold.tools.baselines import DENSE
from vitfold.tools.bench import WIDE
from vitfold.tools.trace import trace
from vitfold.tools.validate import Report

SPEED = ("", "in", "images/s", "quartiles", "x dense there", "x dense in eager torch")

ACCURACY = ("method", "accuracy", "95 %", "agrees", GFLOPS)


def show_all(output: Path) -> None:
    """Tables, plot, pictures and figures, the last three in this directory."""
    dense = speed.real_model()
    fastest = _speed(dense, output)
    _photographs(dense, output)
    _accuracy(output)
    show.console.print(
        f"pictures are in {output}; next, on a model and photographs of your own:\n"
        f"vitfold tune {speed.MODEL} --data-dir PHOTOS --speedup 1.4 "
        f"--batch-size {speed.BATCH} --runtime {fastest} -o tuned",
        markup=False,
        soft_wrap=True,
    )


# A model of real size


def _speed(dense: nn.Module, output: Path) -> str:
    """The table; returns the name of the fastest runtime."""
    images = photographs.batch(dense, speed.BATCH)
    with show.bar(f"preparing and timing {speed.MODEL}", speed.steps()) as progress:
        rows = speed.rows(dense, images, progress)
    title = f"{speed.MODEL}, batch {speed.BATCH}; weights are random, times do not depend on them"
    show.table(title, SPEED, [_speed_cells(row) for row in rows])
    if any(row.high - row.low > WIDE * row.images_per_second for row in rows):
        show.note("the machine was busy: quartiles lie far apart; run it again on a quiet one")
    runtimes = speed.runtimes()
    if len(runtimes) == 1:
        show.note('no faster runtime is installed: pip install "vitfold[openvino]"')
    results.write(output / "speed.json", [row.to_json() for row in rows], {"command": "demo"})
    show.written(output / "speed.json")
    return runtimes[-1].name


def _speed_cells(row: speed.Row) -> list[str]:
    return [
        row.model,
        row.runtime,
        f"{row.images_per_second:.1f}",
        f"{row.low:.1f}-{row.high:.1f}",
        f"{row.speedup:.2f}",
        f"{row.eager_speedup:.2f}",
    ]


def _photographs(dense: nn.Module, output: Path) -> None:
    show.console.print("tokens of two photographs: weights are random, so what looks alike merges")
    for name, picture in photographs.strips(dense):
        draw.save(picture, output / name)
        show.written(output / name)


# Digits


def _accuracy(output: Path) -> None:
    with show.bar("folding the digits model", accuracy.steps()) as progress:
        folds = list(accuracy.rows(progress))
    rows = [row for row, _ in folds]
    title = "digits, 12 blocks, 197 tokens, trained; speed is above"
    show.table(title, ACCURACY, [_cells(row) for row in rows])
    _plot(rows, output / "pareto.png")
    least = min(accuracy.SHARES)
    _pictures({row.method: model for row, model in folds if row.flops == least}, output)
    results.write(output / "results.json", [row.to_json() for row in rows], {"command": "demo"})
    show.written(output / "results.json")


def _cells(row: Row) -> list[str]:
    report = _report(row)
    return [
        row.method if row.method == DENSE else f"{row.method} {row.flops:.2f}",
        f"{report.top1:.1%}",
        f"{report.top1_low:.0%}-{report.top1_high:.0%}",
        f"{report.agreement:.1%}",
        f"{row.gflops:.3f}",
    ]


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
    images = accuracy.picture_batch()
    for name, model in models.items():
        traced = trace(model, images)
        pictures = [traced.draw(number) for number in range(len(images))]
        plain = [draw.plain(image) for image in images]
        labels = ["image"] * len(plain) + [f"{name}, {traced.counts[-1][0]} tokens"] * len(pictures)
        path = output / f"tokens-{name}.png"
        draw.save(draw.row(plain + pictures, labels), path)
        show.written(path)
