"""The directory of a training: its settings, checkpoints, logs, and models at the end."""

import contextlib
import json
from pathlib import Path
from typing import Any

from vitfold.errors import TrainError, one_line
from vitfold.files import absent, unmake
from vitfold.tools.results import write_text
from vitfold.train import checkpoint
from vitfold.train.log import EVENTS

RECIPE = "recipe.json"

BEST, LAST, CHECKPOINTS = "best", "last", "checkpoints"


class Output:
    """The directory of one training."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.best, self.last, self.checkpoints = root / BEST, root / LAST, root / CHECKPOINTS
        self._new = absent(root)

    def begin(self, request: dict[str, Any], resume: bool, *, writes: bool) -> None:
        """Make the directory this training's own; one that was begun otherwise is refused.

        request: all that decides the result.
        writes: whether this process is the one, of all that train, that writes files.
        """
        now = json.loads(json.dumps(request))
        before = earlier_request(self.root, resume)
        if before is not None:
            refuse_change(before, now)
        if writes:
            self.root.mkdir(parents=True, exist_ok=True)
            checkpoint.tidy(self.checkpoints)
            write_text(self.root / RECIPE, json.dumps(now, indent=2) + "\n")

    def discard(self) -> None:
        """After a failure: where there is no checkpoint to go on from, leave nothing behind."""
        if checkpoint.last(self.checkpoints) or self.best.exists() or self.last.exists():
            return
        with contextlib.suppress(OSError):
            for name in (RECIPE, EVENTS):
                (self.root / name).unlink(missing_ok=True)
            unmake([self.checkpoints, *self._new])


def earlier_request(root: Path, resume: bool) -> dict[str, Any] | None:
    """The settings of the training in a directory, if it is to go on; None where a new one may
    begin."""
    kept = checkpoint.last(root / CHECKPOINTS)
    if kept and not resume:
        raise TrainError(
            f"{root} holds a training: go on with it by --resume, or give another --output"
        )
    if not kept and not resume and any((root / name).exists() for name in (BEST, LAST)):
        raise TrainError(f"{root} holds what was trained before: give another --output")
    return _read(root / RECIPE) if kept else None


def _read(path: Path) -> dict[str, Any]:
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{path} says how this training was begun, and cannot be read: {one_line(error)}; "
            "give another --output"
        ) from error
    if not isinstance(request, dict):
        raise TrainError(f"{path} is no recipe that vitfold wrote: give another --output")
    return request


def refuse_change(before: Any, now: Any, path: str = "") -> None:
    """Refuse to go on with a training under other settings than those it began with."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            refuse_change(before.get(key), now.get(key), f"{path}.{key}".strip("."))
    elif before != now:
        raise TrainError(f"{path} was {before!r}, now {now!r}: --resume takes the same options")
