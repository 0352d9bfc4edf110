"""The log of a training: `log.csv` for epochs, `log.jsonl` for steps and epochs."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitfold.errors import MissingExtra, VitfoldError
from vitfold.tools import results

EPOCHS, EVENTS = "log.csv", "log.jsonl"


@contextlib.contextmanager
def lenient(what: str) -> Iterator[None]:
    """Where the disk is full, a training goes on, with a warning."""
    try:
        yield
    except (OSError, VitfoldError) as error:
        warnings.warn(f"{what} is not written: {error}", stacklevel=3)


class Log:
    """Rows in a directory. A training that goes on from step `start` forgets what came later.

    writes: whether this process is the one, of all that train, that writes the files.
    """

    def __init__(
        self, directory: Path, start: int, *, writes: bool = True, tensorboard: bool = False
    ) -> None:
        self.directory, self.writes = directory, writes
        self.events = [event for event in self._read() if event["step"] <= start]
        self.board = _board(directory, start) if tensorboard and writes else None
        if writes:
            text = "".join(json.dumps(event) + "\n" for event in self.events)
            results.write_text(directory / EVENTS, text)

    def step(self, step: int, **figures: Any) -> None:
        """Log the figures of a step."""
        self._add({"kind": "step", "step": step, **figures})

    def epoch(self, step: int, **figures: float) -> None:
        """Log the figures of an epoch."""
        self._add({"kind": "epoch", "step": step, **figures})
        rows = [{k: v for k, v in e.items() if k != "kind"} for e in self.epochs]
        if self.writes:
            with lenient(EPOCHS):
                results.write(self.directory / EPOCHS, rows, {})

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of all epochs so far."""
        return [event for event in self.events if event["kind"] == "epoch"]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of all logged steps so far."""
        return [event for event in self.events if event["kind"] == "step"]

    def close(self) -> None:
        """Write the rows that are still buffered."""
        if self.board:
            self.board.close()

    def _add(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if not self.writes:
            return
        with lenient(EVENTS), (self.directory / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        if self.board:
            for name, value in _scalars(event):
                self.board.add_scalar(f"{event['kind']}/{name}", value, event["step"])

    def _read(self) -> list[dict[str, Any]]:
        path = self.directory / EVENTS
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [event for line in lines for event in _event(line)]


def _scalars(event: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of an event as single numbers; entries of a list get their number in the name."""
    for name, value in event.items():
        if isinstance(value, list):
            yield from ((f"{name}/{number}", one) for number, one in enumerate(value))
        elif name not in ("kind", "step"):
            yield name, value


def _event(line: str) -> list[dict[str, Any]]:
    """A row of the log; None where a stop cut it off."""
    try:
        event = json.loads(line)
    except ValueError:
        return []
    return [event] if isinstance(event, dict) and "step" in event else []


def _board(directory: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("--tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(directory), purge_step=start + 1)
