"""The command line: one thin file per command. Errors are one line and exit with 2."""

import importlib.metadata
import os
import re
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vitfold.cli import show
from vitfold.cli.commands import Commands
from vitfold.errors import VitfoldError, one_line

app = typer.Typer(
    name="vitfold",
    cls=Commands,
    help="Vision transformers with fewer tokens: the same model, 1.5 to 2.5 times faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"vitfold {importlib.metadata.version('vitfold')}")
        raise typer.Exit


@app.callback()
def before_a_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What comes before a command."""


def main() -> None:
    """Run the command line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: show.note(str(message))
        try:
            app(_positional(_repeated(sys.argv[1:])))
        except Exception as error:
            text = _in_words(error)
            if text is None:
                raise
            console = Console(stderr=True, highlight=False, soft_wrap=True)
            console.print(f"[red]error:[/] {escape(text)}")
            sys.exit(2)


def _in_words(error: Exception) -> str | None:
    """The line for an error; None of one that nobody expected."""
    if isinstance(error, VitfoldError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == FULL_GPU or FULL in str(error):
        return "there is not enough memory: give a smaller --batch-size, or smaller images"
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError:  # it is what cannot be written to, and Python would try again in the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return one_line(error)
    return None


FULL = "can't allocate memory"
"""What torch says of a CPU's memory."""

FULL_GPU = "OutOfMemoryError"
"""What it raises of a GPU's."""


KEYED = re.compile(r"--[a-z]+-kwargs")


def _repeated(arguments: list[str]) -> list[str]:
    """timm's `--model-kwargs a=1 b=2`, as `--model-kwargs a=1 --model-kwargs b=2`."""
    words: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            option = argument if KEYED.fullmatch(argument) else ""
        elif option and words[-1] != option:
            words.append(option)
        words.append(argument)
    return words


def _positional(arguments: list[str]) -> list[str]:
    """timm's `--model NAME`, as the first argument of the command."""
    words = 2 if arguments[:1] == ["analyze"] else 1
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--model" and place >= words and (equals or place + 1 < len(arguments)):
            rest = arguments[place + (1 if equals else 2) :]
            name = value if equals else arguments[place + 1]
            return [*arguments[:words], name, *arguments[words:place], *rest]
    return arguments
