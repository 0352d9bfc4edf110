"""Folds that were looked at: how near they stay and how fast they are, each measured once, and kept
in a file from which the same tuning goes on."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitfold.errors import DataError, MethodError
from vitfold.methods import Base
from vitfold.methods.registry import from_json
from vitfold.tools.fidelity import Fidelity, is_less
from vitfold.tools.results import write_text

FILE = "trials.json"


class Share(NamedTuple):
    """The time of a fold over the dense model's, in the same round: the median and quartiles."""

    median: float
    low: float
    high: float


@dataclass
class Trial:
    """A fold that was looked at.

    fidelity: how near it stays to the dense model, in eager torch.
    losses: what is lost of every image.
    share: of the dense model's time in the runtime; None where it was not timed.
    """

    method: Base
    fidelity: Fidelity
    losses: tuple[float, ...]
    share: Share | None = None

    @property
    def loss(self) -> float:
        """What is lost of an image; the less the better."""
        return sum(self.losses) / len(self.losses)

    def beats(self, other: "Trial", surely: bool) -> bool:
        """Whether less is lost, on the same images; surely: by more than the standard error."""
        double = torch.float64
        ours, theirs = (torch.tensor(trial.losses, dtype=double) for trial in (self, other))
        return is_less(ours, theirs, surely)

    @property
    def nearness(self) -> str:
        """How near it stays, in few words."""
        near = self.fidelity
        if near.kl is not None:
            return f"KL {near.kl.mean:.4f}"
        cosine = near.cosine or near.dense_cosine
        return f"cosine {cosine.mean:.4f}" if cosine else ""

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        row = {"method": self.method.to_json(), "fidelity": self.fidelity.to_json()}
        return row | ({"share": self.share._asdict()} if self.share else {})

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> "Trial":
        """What `to_json` gave, and what is lost of every image."""
        share = Share(**row["share"]) if "share" in row else None
        near = Fidelity.of_json(row["fidelity"])
        return cls(from_json(row["method"]), near, tuple(map(float, row["losses"])), share)


@dataclass(frozen=True)
class Setting:
    """What figures depend on: those of another setting are of no use.

    weights, images: fingerprints.
    """

    weights: str
    images: str
    runtime: str
    int8: bool
    batch_size: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]


class Trials:
    """All trials of a setting, by method; in a file too, where there is a directory."""

    def __init__(self, setting: Setting, directory: Path | None = None) -> None:
        self.setting = setting
        self.path = None if directory is None else directory / FILE
        self._all: dict[str, Trial] = {}
        if self.path is not None and self.path.exists():
            self._go_on(self.path)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def of(self, method: Base) -> Trial | None:
        """The trial of a method, if there was one."""
        return self._all.get(_key(method))

    def keep(self, trial: Trial) -> None:
        """Keep a trial, or what was measured of it since."""
        self._all[_key(trial.method)] = trial
        if self.path is not None:
            rows = [trial.to_json() | {"losses": list(trial.losses)} for trial in self]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(self.setting) | {"trials": rows}, indent=1)
            write_text(self.path, text + "\n")

    def _go_on(self, path: Path) -> None:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            rows = before.pop("trials")
            trials = [Trial.of_json(row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MethodError) as error:
            raise DataError(
                f"{path} holds no trials that a tuning wrote: give another directory"
            ) from error
        for name, value in asdict(self.setting).items():
            if before.get(name) != value:
                raise DataError(
                    f"{path} holds trials with another {name} ({before.get(name)!r}, not "
                    f"{value!r}): give another directory"
                )
        self._all = {_key(trial.method): trial for trial in trials}


def _key(method: Base) -> str:
    return json.dumps(method.to_json(), sort_keys=True)
