"""MethodRecipe: how a method wants to be trained, stated by the method itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MethodRecipe:
    """The part of a recipe that a method decides where the user does not; what is None or empty is
    as for any model. Its loss is another thing: `Learned.loss`.

    epochs: how often every image is seen.
    smoothing: of the labels.
    optimizer: options of timm's `create_optimizer_v2`, by name.
    rates: learning rates of what the method learns, by its names.
    freeze: `model`: all but what the method learns stays as it is, unless the user gives a learning
        rate; None: everything is trained.
    temperature: of distillation: what soft logits are divided by.
    log_every: steps between lines in the log.
    """

    epochs: int | None = None
    smoothing: float | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    freeze: str | None = None
    temperature: float | None = None
    log_every: int | None = None
