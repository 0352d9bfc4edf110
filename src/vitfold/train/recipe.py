"""What a training is asked to do: plain values, which go to JSON as they are."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vitfold.errors import TrainError

Options = dict[str, Any]

DISTILLATIONS = ("soft", "hard")


@dataclass(frozen=True)
class Distillation:
    """What is learned from a teacher, beside the labels.

    kind: `soft`, its probabilities, or `hard`, its best class.
    alpha: how much it counts; the labels count one.
    temperature: what soft logits are divided by.
    """

    kind: str = "soft"
    alpha: float = 1.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in DISTILLATIONS:
            raise TrainError(f"distill={self.kind!r}: expected {' or '.join(DISTILLATIONS)}")
        _above("distill_alpha", self.alpha, 0)
        _above("distill_temperature", self.temperature, 0)


MOST = 3.4e38
"""What no option reaches: the largest number of single precision."""

FREEZES = ("none", "model", "method")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    batch_size: images that one process passes through the model at once.
    accumulate: how many such batches make one step.
    clip: the longest gradient; None: any length.
    sam: how far sharpness-aware minimization looks; None: plain training.
    smoothing: of the labels.
    optimizer, schedule, augment, mix: what goes to timm's `create_optimizer_v2`,
        `create_scheduler_v2`, `create_transform` and `Mixup`.
    rates: learning rates of what a method learns, by its names; the optimizer's own for others.
    freeze: what stays as it is: nothing, the model but for what its method learns, or just that.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    clip: float | None = None
    sam: float | None = None
    seed: int = 42
    smoothing: float = 0.0
    optimizer: Options = field(default_factory=lambda: {"opt": "adamw", "lr": 5e-4})
    schedule: Options = field(default_factory=lambda: {"sched": "cosine"})
    augment: Options = field(default_factory=dict)
    mix: Options = field(default_factory=dict)
    distill: Distillation | None = None
    rates: Options = field(default_factory=dict)
    freeze: str = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _whole(name, getattr(self, name), 1)
        _whole("seed", self.seed, 0)
        for name in ("clip", "sam"):
            if getattr(self, name) is not None:
                _above(name, getattr(self, name), 0)
        for name, rate in self.rates.items():
            _above(f"lr_{name}", rate, 0)
        for name in ("lr", "weight_decay", "warmup_lr", "min_lr"):
            value = (self.schedule | self.optimizer).get(name)
            if value is not None and not 0 <= value < MOST:
                raise TrainError(f"{name}={value!r}: expected a number from 0 up")
        decay = self.optimizer.get("layer_decay")
        if decay is not None and not 0 < decay <= 1:
            raise TrainError(f"layer_decay={decay!r}: expected a number up to 1, above 0")
        if not 0 <= self.smoothing < 1:
            raise TrainError(f"smoothing={self.smoothing!r}: expected 0 up to 1")
        if self.freeze not in FREEZES:
            raise TrainError(f"freeze={self.freeze!r}: expected {', '.join(FREEZES)}")
        if self.mix and self.batch_size % 2:
            raise TrainError(f"batch_size={self.batch_size}: mixing takes an even one")

    def to_json(self) -> dict[str, Any]:
        """By field name."""
        return dataclasses.asdict(self)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TrainError(f"{name}={value!r}: expected a whole number of at least {least}")


def _above(name: str, value: object, least: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least < value < MOST:  # type: ignore[operator]
        raise TrainError(f"{name}={value!r}: expected a number above {least}")
