"""`vitfold report`: one page of results."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import show
from vitfold.errors import DataError


def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Files of sweep, bench or validate.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "vitfold",
) -> None:
    """One self-contained page: plots, token pictures, tables, versions and hardware."""
    from vitfold.lab.report.page import report as report_
    from vitfold.tools.results import write_text

    if not output.parent.is_dir():
        raise DataError(f"--output {output}: there is no directory {output.parent}")
    write_text(output, report_(files, title))
    show.written(output)
