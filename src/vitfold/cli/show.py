"""Tables, progress bars and files of results."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vitfold.lab.styles import BASELINES

if TYPE_CHECKING:
    from torch import nn

    from vitfold.tools.results import Rows

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


SECONDS = 30.0
"""How often a line says how far work is, where there is no terminal for a bar."""

WORDS = TextColumn("{task.fields[words]}", markup=False)
"""A column of what else there is to say."""

Update = Callable[..., None]
"""Takes what changed: completed, total, description, words."""


@contextmanager
def following(what: str, total: float | None, *columns: ProgressColumn) -> Iterator[Update]:
    """A progress bar on standard error with these columns beside it; where that is no terminal, as
    in a log, a line now and then."""
    if not (errors.is_terminal or errors.is_jupyter):
        yield Lines(what, total).update
        return
    shown = (TextColumn("{task.description}"), BarColumn(), *columns)
    with Progress(*shown, console=errors, transient=True) as progress:
        task = progress.add_task(what, total=total, words="")
        yield functools.partial(progress.update, task)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar; the callable moves it on by one."""
    with following(what, total, MofNCompleteColumn(), TimeRemainingColumn()) as update:
        steps = itertools.count(1)
        yield lambda: update(completed=next(steps))


@contextmanager
def gauge(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar whose end is not known in steps; the callable moves it to a share of the whole, and
    says something beside it."""
    columns = (TaskProgressColumn(), TimeElapsedColumn(), WORDS)
    with following(what, 1.0, *columns) as update:
        yield lambda share, words: update(completed=share, words=words)


class Lines:
    """How far work is, in a line every `SECONDS`: as a share where the whole is 1.0."""

    def __init__(self, what: str, total: float | None) -> None:
        first = {"description": what, "total": total, "completed": 0, "words": ""}
        self.fields: dict[str, Any] = first
        self.start = self.told = time.perf_counter()

    def update(self, **fields: Any) -> None:
        """Take what changed, as a bar does."""
        self.fields |= fields
        now = time.perf_counter()
        if now - self.told >= SECONDS:
            self.told = now
            errors.print(self._line(now - self.start), markup=False, soft_wrap=True)

    def _line(self, seconds: float) -> str:
        done, total, words = (self.fields[name] for name in ("completed", "total", "words"))
        far = f"{done}" if total is None else f"{done} of {total}"
        if isinstance(total, float):
            far = f"{done:.0%}"
        line = f"{self.fields['description']}: {far} after {timedelta(seconds=round(seconds))}"
        return f"{line}, {words}" if words else line


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; all columns but the first are figures."""
    grid = Table(title=escape(title), title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(
            escape(column),
            justify="right" if number else "left",
            no_wrap=not number,
            overflow="fold",
        )
    for row in rows:
        grid.add_row(*map(escape, row), style="bright_black" if row[0] in BASELINES else None)
    console.print(grid)


def note(text: str) -> None:
    """A line on the side."""
    errors.print(text, style="yellow", markup=False)


def written(path: Path) -> None:
    """Say what was written."""
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def results(path: Path | None, command: str, name: str, model: "nn.Module", rows: "Rows") -> None:
    """Rows on a folded model go to a file, where one is asked for."""
    if path is None:
        return
    from vitfold.folding.calls import fold_of
    from vitfold.tools.results import write

    method = fold_of(model).method
    tags = {"model": name, "method": str(method)}
    about = {"command": command, "model": name, "method": method.to_json()}
    write(path, [tags | dict(row) for row in rows], about)
    written(path)
