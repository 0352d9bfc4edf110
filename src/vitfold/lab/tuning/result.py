"""What a tuning came to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.folding.calls import fold_of
from vitfold.lab.tuning import card
from vitfold.lab.tuning.goal import Goal
from vitfold.lab.tuning.trials import Setting, Share, Trial
from vitfold.saving import sources
from vitfold.saving.fields import FILE as PLAN
from vitfold.saving.page import about
from vitfold.saving.plans import Directory, save
from vitfold.saving.store import WEIGHTS
from vitfold.tools.fidelity import Fidelity
from vitfold.tools.measure import Throughput
from vitfold.tools.removal import removed


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model that was tuned, and what is known of it.

    model: folded, or dense where that is faster.
    trial: the fold that it has; None where it is dense.
    nearest: the share of the dense model's time that the best, or the fastest fold takes; None
        where none was timed.
    idle: whether the dense model keeps the goal, so that nothing was looked for.
    stopped: whether it was stopped before its end.
    dense: images per second of the dense model.
    fidelity: how near what the runtime gives stays to the dense model in eager torch.
    trials: all folds that were looked at.
    """

    model: nn.Module
    goal: Goal
    setting: Setting
    trial: Trial | None
    nearest: Share | None
    idle: bool
    stopped: bool
    dense: Throughput
    fidelity: Fidelity | None
    images: int
    tokens: int
    trials: Sequence[Trial]

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model it is."""
        share = self.trial and self.trial.share
        return 1 / share.median if share else 1.0

    @property
    def removes(self) -> tuple[int, ...]:
        """How many tokens leave every block."""
        return removed(self.model) if self.trial is not None else ()

    @property
    def slower(self) -> str | None:
        """Why the model stays dense; None where it is folded."""
        if self.trial is not None:
            return None
        where = f"in {self.setting.runtime} at batch size {self.setting.batch_size}"
        if self.idle:
            milliseconds = self.setting.batch_size / self.dense.median * 1e3
            return (
                f"the dense model keeps {self.goal} {where}: it takes {milliseconds:.1f} ms a "
                "batch, and stays as it is"
            )
        times, surely = "", ""
        if self.nearest is not None:
            middle, low, high = self.nearest
            times = f": the best takes {middle:.2f} ({low:.2f} to {high:.2f}) of its time"
            surely = " surely" * (middle < 1)
        return (
            f"no fold is{surely} faster than the dense model {where} here{times}; the model stays "
            "dense"
        )

    @property
    def words(self) -> str:
        """What was done to the model."""
        if self.slower is not None:
            return f"{self.slower[0].upper()}{self.slower[1:]}."
        removes = self.removes
        blocks = [block for block, number in enumerate(removes) if number]
        left = self.tokens - sum(removes)
        numbers = ", ".join(str(removes[block]) for block in blocks)
        return (
            f"{fold_of(self.model).method.name} removes tokens in blocks "
            f"{', '.join(map(str, blocks))} ({numbers}): of {self.tokens} tokens {left} are left, "
            f"and it is {self.speedup:.2f} times as fast as the dense model. Asked for: "
            f"{self.goal.words}."
        )

    def to_json(self, command: str = "") -> dict[str, Any]:
        """All of it, for `card.json`."""
        trial, setting = self.trial, self.setting
        return {
            "model": _model(self.model),
            "words": self.words,
            "goal": {self.goal.name: self.goal.value},
            "method": trial and trial.method.to_json(),
            "removed": list(self.removes),
            "runtime": setting.runtime,
            "int8": setting.int8,
            "batch_size": setting.batch_size,
            "speed": self._speed(),
            "images": self.images,
            "fidelity": self.fidelity and self.fidelity.to_json(),
            "chosen": trial and trial.to_json(),
            "stopped": self.stopped,
            "trials": [trial.to_json() for trial in self.trials],
            "machine": dict(setting.machine),
            "versions": dict(setting.versions),
            "command": command,
        }

    def _speed(self) -> dict[str, float]:
        rates = {"dense_images_per_second": self.dense.median}
        if self.trial is None or self.trial.share is None:
            return rates
        middle, low, high = self.trial.share
        return rates | {"speedup": 1 / middle, "low": 1 / high, "high": 1 / low}

    def save(self, directory: Directory, command: str = "") -> None:
        """Save the plan (as `vitfold.save` does) where there is a fold, and the card: `README.md`,
        `card.json` and a picture of what was tried.

        command: what it was made by, for the card.
        """
        place = Path(directory)
        if self.trial is not None:
            save(self.model, place)
        else:
            for stale in (PLAN, WEIGHTS):  # of an earlier tuning, for another goal
                (place / stale).unlink(missing_ok=True)
        card.write(self.to_json(command), place)


def _model(model: nn.Module) -> dict[str, Any]:
    """What a card says of a model: its name, and the hub's where it has one."""
    origin = sources.describe(model)
    known = about(origin.source, origin.name)
    name = type(model).__name__ if origin.source == sources.OTHER else known.name
    return {"name": name, "hub": known.base, "by_name": known.by_name}
