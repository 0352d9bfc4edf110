"""Tables, progress bars and files of results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
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


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error; the callable moves it on by one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def gauge(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error whose end is not known in steps; the callable moves it to a share of
    the whole, and says something beside it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(what, total=1.0, words="")
        yield lambda share, words: progress.update(task, completed=share, words=escape(words))


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
