"""Recipe: what a training is asked to do, as plain values that go to JSON as they are.

Its fields hold the only defaults that there are: Python and the command line both take them from
here. What a method wants otherwise it says itself (`Base.training`); `Recipe.for_model` has both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitfold.errors import TrainError, nearest

if TYPE_CHECKING:  # help of the command line reads the defaults, and needs no torch
    from torch import nn

    from vitfold.methods.recipe import MethodRecipe

Options = dict[str, Any]

DISTILLATIONS = ("soft", "hard")

FREEZES = ("none", "model", "method")

MOST = 3.4e38
"""What no option reaches: the largest number of single precision."""

MOST_SEED = 2**63 - 1
"""The largest seed that every random generator takes."""

LOG_EVERY = 50
"""Steps between lines in the log, where neither the user nor the method says how many."""


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


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    epochs: how often every image is seen.
    batch_size: images that one process passes through the model at once.
    accumulate: how many such batches make one step.
    clip: the longest gradient; None: any length.
    sam: how far sharpness-aware minimization looks; None: plain training.
    seed: decides all that is random.
    smoothing: of the labels.
    optimizer, schedule, augment, mix: what goes to timm's `create_optimizer_v2`,
        `create_scheduler_v2`, `create_transform` and `Mixup`. `augment` is for whoever makes the
        images: `train` takes them as they come.
    distill: what is learned from a teacher; None: nothing.
    rates: learning rates of what a method learns, by its names; the optimizer's own for others.
    freeze: what stays as it is: nothing (`none`), the model but for what its method learns
        (`model`), or just that (`method`).
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    clip: float | None = None
    sam: float | None = None
    seed: int = 42
    smoothing: float = 0.0
    optimizer: Options = field(
        default_factory=lambda: {"opt": "adamw", "lr": 5e-4, "weight_decay": 0.05}
    )
    schedule: Options = field(
        default_factory=lambda: {
            "sched": "cosine",
            "warmup_epochs": 0,
            "warmup_lr": 1e-6,
            "min_lr": 0.0,
        }
    )
    augment: Options = field(
        default_factory=lambda: {"hflip": 0.5, "color_jitter": 0.4, "re_prob": 0.0}
    )
    mix: Options = field(default_factory=dict)
    distill: Distillation | None = None
    rates: Options = field(default_factory=dict)
    freeze: str = "none"

    @classmethod
    def for_model(cls, model: nn.Module, **overrides: Any) -> Recipe:
        """The recipe by which `vitfold train` trains this model: as any model, but for what its
        method wants, but for `overrides`.

        overrides: fields. A mapping is laid over what would be there, key by key:
            `Recipe.for_model(model, epochs=2, optimizer={"lr": 1e-3}, distill={"kind": "soft"})`.
        """
        from vitfold.train.learned import kinds, learned_parameters, method_recipe

        names = kinds(name for name, _ in learned_parameters(model))
        return cls.for_method(method_recipe(model), names, **overrides)

    @classmethod
    def for_method(
        cls, method: MethodRecipe, learned: Collection[str] = (), **overrides: Any
    ) -> Recipe:
        """How a model is trained whose method wants to be trained so.

        learned: the names of what it learns: it has rates for more where options switch some off.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in overrides:
            if name not in known:
                raise TrainError(f"a recipe has no {name!r}{nearest(name, known)}")
        usual = vars(cls()) | _fields_of(method, learned, overrides)
        return cls(**{name: _laid(usual[name], overrides.get(name, usual[name])) for name in usual})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _whole(name, getattr(self, name), 1)
        _whole("seed", self.seed, 0)
        if self.seed > MOST_SEED:
            raise TrainError(f"seed={self.seed}: expected at most {MOST_SEED}")
        for name in ("clip", "sam"):
            if getattr(self, name) is not None:
                _above(name, getattr(self, name), 0)
        for name, rate in self.rates.items():
            _above(f"lr_{name}", rate, 0)
        self._check_options()
        if not 0 <= self.smoothing < 1:
            raise TrainError(f"smoothing={self.smoothing!r}: expected 0 up to 1")
        if self.freeze not in FREEZES:
            raise TrainError(f"freeze={self.freeze!r}: expected {', '.join(FREEZES)}")
        if self.mix and self.batch_size % 2:
            raise TrainError(f"batch_size={self.batch_size}: mixing takes an even one")

    def _check_options(self) -> None:
        for name in ("lr", "weight_decay", "warmup_lr", "min_lr"):
            value = (self.schedule | self.optimizer).get(name)
            if value is not None and not 0 <= value < MOST:
                raise TrainError(f"{name}={value!r}: expected a number from 0 up")
        decay = self.optimizer.get("layer_decay")
        if decay is not None and not 0 < decay <= 1:
            raise TrainError(f"layer_decay={decay!r}: expected a number up to 1, above 0")

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON takes them."""
        return dataclasses.asdict(self)


def _fields_of(
    method: MethodRecipe, learned: Collection[str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """What a method wants otherwise, as fields of a recipe."""
    optimizer = Recipe().optimizer | dict(method.optimizer)
    freeze = method.freeze or "none"
    if freeze == "model" and "lr" in overrides.get("optimizer", {}):
        freeze = "none"
    elif freeze == "model":
        del optimizer["lr"]
    rates = {name: rate for name, rate in method.rates.items() if name in learned}
    fields: dict[str, Any] = {
        "epochs": method.epochs,
        "smoothing": method.smoothing,
        "optimizer": optimizer,
        "rates": {} if overrides.get("freeze") == "method" else rates,
        "freeze": freeze,
    }
    if isinstance(overrides.get("distill"), Mapping) and method.temperature is not None:
        fields["distill"] = Distillation(temperature=method.temperature)
    return {name: value for name, value in fields.items() if value is not None}


def _laid(usual: Any, override: Any) -> Any:
    """An override over what is usual."""
    if not isinstance(override, Mapping):
        return override
    if usual is None or isinstance(usual, Distillation):
        return dataclasses.replace(usual or Distillation(), **override)
    return {**usual, **override}


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TrainError(f"{name}={value!r}: expected a whole number of at least {least}")


def _above(name: str, value: object, least: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least < value < MOST:  # type: ignore[operator]
        raise TrainError(f"{name}={value!r}: expected a number above {least}")
