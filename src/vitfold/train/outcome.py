"""The outcome of a training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfold.errors import TrainError
from vitfold.train.fit import NEAR


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    epochs: a row of figures each.
    best: the highest figure of the evaluator, where there were held-out images; its weights are in
        `best/`.
    stop: the step at which a signal ended it; None: it went to its end.
    steps: the figures of the steps that were logged.
    target, share: the share of the dense FLOPs that a method was trained for, and the one that
        calibration images cost.
    share_before: the one that they cost before what was learned was fitted to it; None: it was not.
    """

    epochs: list[dict[str, float]]
    best: float | None
    stop: int | None
    steps: list[dict[str, Any]] = field(default_factory=list)
    target: float | None = None
    share: float | None = None
    share_before: float | None = None


class OutOfReach(TrainError):
    """Training came to its end, and not to the share of the FLOPs that was asked for."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


def check_share(outcome: Outcome, last: Path) -> None:
    """Say so where the model in `last` misses the share that it was trained for."""
    target, share, before = outcome.target, outcome.share, outcome.share_before
    if target is None or share is None or before is None or abs(share - target) <= NEAR:
        return
    remedy = "train longer or at higher rates, or ask for another share"
    if before < target:
        remedy = f"training went too far, to {before:.3f}: train at lower rates"
    raise OutOfReach(
        outcome,
        f"flops={target} is not reached: {last} costs {share:.3f} of the dense FLOPs; {remedy}",
    )
