"""What the real command line makes of the words of a page, without running it."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import typer

from vitfold.cli import _positional, _repeated
from vitfold.cli.commands import COMMANDS, load

PLACEHOLDERS = {"R": "openvino", "N": "8"}
"""Words of a page that stand for what a reader chooses, where the option takes no other text."""


class UnknownCommand(Exception):
    """No test knows what runs this."""


def parse(words: Sequence[str], extras: set[str], targets: set[str]) -> None:
    """Read a line of a shell as what it calls would, up to where it would begin to work. Raises
    what the reader would see, or `UnknownCommand`.

    extras: of the package.
    targets: of the Makefile.
    """
    program, *rest = (PLACEHOLDERS.get(word, word) for word in words)
    if program == "vitfold":
        vitfold_command(rest)
    elif program == "python" and rest and rest[0].startswith(("benchmarks/", "scripts/")):
        script(rest)
    elif [program, *rest][:2] == ["pip", "install"]:
        for package in rest[1:]:
            check_extras(package, extras)
    elif program == "make" and set(rest) <= targets:
        return
    else:
        raise UnknownCommand(f"{' '.join(words)!r}: teach support/reading.py to read it")


def vitfold_command(arguments: list[str]) -> None:
    """The options of a command exist, and take such values."""
    name, *rest = _positional(_repeated(arguments))
    if name not in COMMANDS:
        raise UnknownCommand(f"vitfold has no command {name!r}")
    command = load(name)
    if COMMANDS[name].app:
        below, *rest = rest
        command = command.commands[below]
    command.make_context(name, rest)


def script(words: list[str]) -> None:
    """The same of a script of the repository, which lies where the reader stands."""
    path, *rest = words
    module = importlib.import_module(Path(path).stem)
    app = typer.Typer()
    app.command()(module.main)
    typer.main.get_command(app).make_context(path, rest)


def check_extras(package: str, extras: set[str]) -> None:
    """What stands in brackets behind vitfold are extras of it."""
    found = re.fullmatch(r"vitfold(?:\[([\w,-]+)\])?", package)
    if found is None:
        raise UnknownCommand(f"pip install {package}: expected vitfold, with extras")
    unknown = set((found[1] or "").split(",")) - extras - {""}
    if unknown:
        raise UnknownCommand(f"pip install {package}: no extra is called {sorted(unknown)}")


def incomplete(error: Exception) -> bool:
    """Whether an error says no more than that an argument is missing."""
    return type(error).__name__ == "MissingParameter"
