"""Candidates measured in turn on this machine: speed, operations, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from vitfold.folding.families import find
from vitfold.folding.inputs import Inputs
from vitfold.tools.baselines import BOUND, DENSE, EAGER, FOLDED, is_whole
from vitfold.tools.measure import Progress, Throughput, batch_of, compare, flops, peak_memory

WIDE = 0.25
"""Quartiles this far apart, as a share of the median, say that the machine did other work too."""

BEYOND = 1.05
"""A share of the bound above this is no measurement: nothing is faster than the bound, and a quiet
machine is that precise."""

FAR = 0.02
"""How far from the share of the FLOPs that was asked for a fold may be without a word."""


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size.

    low, high: quartiles of the images per second.
    gflops: per image, two operations per multiply-add.
    flops_share: that, over the dense model's.
    speedup: the time of the dense model over its own.
    memory_mb: at the peak of a call; None where nobody can tell.
    share: the time of free slicing over its own: 1 is as fast as removing tokens can be.
    eager_speedup: the time of the dense model in eager torch over its own; None where that was not
        timed.
    """

    name: str
    batch_size: int
    images_per_second: float
    low: float
    high: float
    gflops: float
    flops_share: float
    memory_mb: float | None
    speedup: float
    share: float
    eager_speedup: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by field name."""
        return asdict(self)


def timed_part(model: nn.Module) -> nn.Module:
    """What of a model is timed: the vision transformer, or a whole segmenter."""
    if is_whole(model):
        return model
    trunk: nn.Module = find(model).trunk
    return trunk


def bench(
    models: Mapping[str, nn.Module],
    images: Inputs,
    *,
    served: Mapping[str, nn.Module] | None = None,
    memory: bool = True,
    repeats: int = 10,
    warmup: int = 2,
    progress: Progress = lambda: None,
) -> list[Row]:
    """Every candidate on one batch, measured in turn; `DENSE` and `BOUND` are among them.

    models: torch's, whose operations are counted.
    served: what is timed in their place, by the same names: what a runtime makes of them. One that
        is not there has no row; `EAGER` may be there too. By default the models themselves.
    memory: whether torch runs what is timed, so that its memory can be measured.
    """
    timed = models if served is None else served
    rates = compare(timed, images, repeats=repeats, warmup=warmup, progress=progress)
    names = [name for name in models if name in timed]
    operations = {name: flops(models[name], images) for name in names}
    peaks = {name: peak_memory(timed[name], images) / 1e6 for name in names if memory}
    return [_row(name, batch_of(images), rates, operations, peaks.get(name)) for name in names]


def _row(
    name: str,
    batch: int,
    rates: Mapping[str, Throughput],
    operations: Mapping[str, int],
    peak: float | None,
) -> Row:
    rate = rates[name]
    return Row(
        name=name,
        batch_size=batch,
        images_per_second=rate.median,
        low=rate.low,
        high=rate.high,
        gflops=operations[name] / batch / 1e9,
        flops_share=operations[name] / operations[DENSE],
        memory_mb=peak,
        speedup=rate.median / rates[DENSE].median,
        share=rate.median / rates[BOUND].median,
        eager_speedup=rate.median / rates[EAGER].median if EAGER in rates else None,
    )


def warnings(rows: Sequence[Row], share: float | None = None, place: str = "here") -> list[str]:
    """What to know before the figures are used, in words.

    share: of the dense FLOPs, that was asked for.
    place: where they were taken, in words.
    """
    return [text for text in (_slow(rows, place), _busy(rows), _off_share(rows, share)) if text]


def beyond_bound(share: float | None) -> bool:
    """Whether a share of the bound is more than any machine can do."""
    return share is not None and share > BEYOND


def _slow(rows: Sequence[Row], place: str) -> str:
    sizes = [str(row.batch_size) for row in rows if row.name == FOLDED and row.speedup < 1]
    if not sizes:
        return ""
    return (
        f"slower than the dense model {place} at batch size {', '.join(sizes)}: "
        "remove more tokens, or use larger images or batches"
    )


def _busy(rows: Sequence[Row]) -> str:
    impossible = [row for row in rows if row.name == FOLDED and beyond_bound(row.share)]
    wide = [row for row in rows if row.high - row.low > WIDE * row.images_per_second]
    if impossible:
        worst = max(impossible, key=lambda row: row.share)
        what = f"{worst.share:.2f} of the bound at batch size {worst.batch_size} cannot be"
    elif wide:
        widest = max(wide, key=lambda row: (row.high - row.low) / row.images_per_second)
        what = (
            f"quartiles of {widest.name} at batch size {widest.batch_size} lie "
            f"{(widest.high - widest.low) / widest.images_per_second:.0%} apart"
        )
    else:
        return ""
    return f"the machine was busy: {what}; measure again on a quiet one, or with more --repeats"


def _off_share(rows: Sequence[Row], share: float | None) -> str:
    costs = [row.flops_share for row in rows if row.name == FOLDED]
    if share is None or not costs or abs(costs[0] - share) <= FAR:
        return ""
    return (
        f"{share} of the dense FLOPs were asked for, and this fold costs {costs[0]:.2f}: speed is "
        "that of what it costs"
    )
