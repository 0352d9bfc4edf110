"""The file of a sweep: its rows so far, from which the same sweep goes on."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from vitfold.errors import DataError
from vitfold.lab.candidate import Key
from vitfold.lab.sweep import Row
from vitfold.tools import results

OTHERWISE = "give another --results-file, or --overwrite"


class SweepFile:
    """The rows of a sweep, in a file that holds all of them at any time.

    about: what the sweep is of; rows of another one are refused.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], overwrite: bool) -> None:
        self.path, self.about = path, about
        self.rows: list[dict[str, Any]] = []
        self.pictures: dict[str, str] = {}
        if path is not None and path.exists() and not overwrite:
            self._go_on(path)

    @property
    def done(self) -> set[Key]:
        """The rows of candidates that need no other run."""
        return {(row["method"], float(row["flops"]), row["source"]) for row in self.rows}

    def add(self, row: Row, picture: str | None) -> None:
        """Add a row; it is in the file before the next candidate begins."""
        self.rows.append(row.to_json())
        if picture:
            self.pictures[row.method] = picture
        if self.path is not None:
            full = self.path.suffix == ".json"
            rows = self.rows if full else [self._short(row) for row in self.rows]
            results.write(self.path, rows, self.about | {"pictures": self.pictures})

    def _go_on(self, path: Path) -> None:
        before = results.read(path)
        self.rows, self.pictures = before["rows"], before.get("pictures", {})
        if path.suffix == ".json":
            _check_same(path, before, self.about)
        elif any(row.get("sweep") != self._fingerprint for row in self.rows):
            raise DataError(
                f"{path} holds rows of another model, other data or other options: {OTHERWISE}; "
                "a .json file says which"
            )
        try:
            len(self.done)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(f"{path} holds rows that no sweep wrote: {OTHERWISE}") from None

    @functools.cached_property
    def _fingerprint(self) -> str:
        """What tells the rows of this sweep from those of others in a CSV file, where there is no
        room for more than rows."""
        text = json.dumps(self.about, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _short(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as CSV takes it."""
        flat = {name: value for name, value in row.items() if name not in ("counts", "changed")}
        return flat | {"sweep": self._fingerprint}


def _check_same(path: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    for name, value in about.items():
        if before.get(name) != value:
            raise DataError(
                f"{path} holds a sweep with {name}={before.get(name)!r}, not {value!r}: {OTHERWISE}"
            )
