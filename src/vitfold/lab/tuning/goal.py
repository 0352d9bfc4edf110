"""What a tuned fold has to keep: a figure of speed, of cost, or of nearness to the dense model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vitfold.errors import MethodError


@dataclass(frozen=True)
class Goal:
    """A figure, and the value that is to be kept."""

    name: str
    value: float

    @property
    def is_near(self) -> bool:
        """Whether nearness is kept, and the fastest fold is looked for; otherwise speed or cost is
        kept, and the nearest fold is looked for."""
        return self.name in NEAR

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"

    @property
    def words(self) -> str:
        """What is asked for."""
        return WORDS[self.name].format(self.value)

    def level(self, seconds: float, batch_size: int) -> float:
        """The share of the dense model's time, or of its FLOPs, that a fold may take.

        seconds: what the dense model takes for a batch.
        """
        return {
            "speedup": 1 / self.value,
            "latency_ms": self.value / 1e3 / seconds,
            "throughput": batch_size / self.value / seconds,
            "flops": self.value,
        }[self.name]


NEAR = ("cosine", "agreement")

WORDS = {
    "speedup": "{:g} times as fast as the dense model",
    "latency_ms": "at most {:g} ms a batch",
    "throughput": "at least {:g} images/s",
    "flops": "{:g} of the dense FLOPs",
    "cosine": "a mean cosine of at least {:g} with the dense model",
    "agreement": "the dense model's class for at least {:.1%} of the images",
}

BOUNDS = {
    "speedup": (1.0, math.inf, "a number above 1"),
    "latency_ms": (0.0, math.inf, "a number above 0"),
    "throughput": (0.0, math.inf, "a number above 0"),
    "flops": (0.0, 1.0, "a share between 0 and 1"),
    "cosine": (0.0, 1.0, "a number between 0 and 1"),
    "agreement": (0.0, 1.0, "a share between 0 and 1"),
}


def goal_of(values: Mapping[str, float | None]) -> Goal:
    """The one goal that is given."""
    chosen = {name: value for name, value in values.items() if value is not None}
    if len(chosen) != 1:
        which = "none" if not chosen else " and ".join(chosen)
        raise MethodError(f"tune takes one goal, got {which}: give one of {', '.join(BOUNDS)}")
    ((name, value),) = chosen.items()
    low, high, expected = BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise MethodError(f"{name}={value!r}: expected {expected}")
    return Goal(name, float(value))
