"""The command line: one thin file per command. Errors are one line and exit with 2."""

import sys

import typer
from rich.console import Console

from vitfold.cli import bench, demo, families, trace, train, validate
from vitfold.errors import VitfoldError

app = typer.Typer(
    name="vitfold",
    help="Vision transformers with fewer tokens: the same model, 1.5 to 2.5 times faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(demo.demo)
app.command()(bench.bench)
app.command()(validate.validate)
app.command()(trace.trace)
app.command()(train.train)
app.command()(families.families)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except VitfoldError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {error}")
        sys.exit(2)
