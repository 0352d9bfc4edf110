"""What is told of an export: how it agrees with eager, and how fast it is beside the dense one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitfold.exporting.inside import Inside
from vitfold.exporting.verify import Agreement
from vitfold.tools.fidelity import Fidelity
from vitfold.tools.intervals import Estimate
from vitfold.tools.measure import Throughput


@dataclass(frozen=True)
class Corner:
    """One form of the model in the runtime: dense or folded, in float32 or in eight bits.

    megabytes: of its files.
    times: by batch size.
    speedups: over the dense float32 form, by batch size.
    fidelity: beside the dense model in eager torch, on the given images; None without any.
    top1: the share of these that it classifies as they are labelled; None without labels.
    """

    name: str
    megabytes: float
    times: Mapping[int, Throughput]
    speedups: Mapping[int, float]
    fidelity: Fidelity | None = None
    top1: Estimate | None = None

    def milliseconds(self, size: int) -> dict[str, float]:
        """The time of a batch of that size: the median, and the quartiles around it."""
        time = self.times[size]
        rates = {"ms": time.median, "low": time.high, "high": time.low}
        return {name: size / rate * 1e3 for name, rate in rates.items()}

    def to_json(self) -> dict[str, Any]:
        """The figures by name; times in milliseconds a batch."""
        rows = {
            str(size): self.milliseconds(size) | {"speedup": self.speedups[size]}
            for size in self.times
        }
        row = {"name": self.name, "megabytes": self.megabytes, "batch_sizes": rows}
        right = {} if self.top1 is None else {"top1": self.top1._asdict()}
        return row | right | ({"fidelity": self.fidelity.to_json()} if self.fidelity else {})


@dataclass(frozen=True)
class Report:
    """What `export` wrote, and how it was found to be.

    model, method: the class, and how it is folded; None where it is dense.
    batch_size: None where any number of images is taken.
    preprocess: what was seen of preprocessing in the program; None where it takes prepared images.
    agreement: with eager torch, in float32.
    corners: every form that was measured; the one that was written comes last.
    """

    target: str
    runtime: str
    model: str
    method: str | None
    batch_size: int | None
    outputs: tuple[str, ...]
    agreement: Agreement
    corners: tuple[Corner, ...]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    preprocess: Inside | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, for `report.json`."""
        own = {
            name: value
            for name, value in vars(self).items()
            if name not in ("agreement", "corners", "preprocess")
        }
        return {
            **own,
            "preprocess": self.preprocess and asdict(self.preprocess),
            "agreement": asdict(self.agreement),
            "corners": [corner.to_json() for corner in self.corners],
        }

    @property
    def slower(self) -> str | None:
        """What to know before it is used: where it is no faster than the dense model, in the same
        precision or in float32; else None."""
        ours = self.corners[-1]
        for dense in reversed(self.corners):
            if not dense.name.startswith("dense") or dense is ours:
                continue
            ratios = {size: ours.speedups[size] / dense.speedups[size] for size in ours.speedups}
            slow = [f"{size} ({ratio:.2f}x)" for size, ratio in ratios.items() if ratio < 1]
            if slow:
                return (
                    f"slower than the model {dense.name} in {self.runtime} here at batch size "
                    f"{', '.join(slow)}: remove more tokens, use larger images or batches, or "
                    "export that one"
                )
        return None
