"""What all commands have in common: `--import`, bounds of their numbers, words for a stop."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitfold.cli.values import tidying
from vitfold.errors import DataError, MethodError, one_line

Command = Callable[..., None]

BOUND = 2**63
"""Above all whole numbers that torch takes; counts of anything end long before."""

TAKES = ("model", "method", "methods")
"""Parameters that tell that a command can use what other modules register."""


def prepared(command: Command, imports: bool | None = None) -> Command:
    """The command with what all have in common.

    imports: whether it has `--import`; by default where it takes a model or a method.
    """
    signature = inspect.signature(command)
    if imports is None:
        imports = any(name in signature.parameters for name in TAKES)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        options.pop(IMPORT.name, None)
        for name, value in options.items():
            _check_number(name, value)
        with tidying():
            command(**options)

    parameters = list(signature.parameters.values())
    by_name = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=by_name + [IMPORT] * imports
    )
    return run


def _check_number(name: str, value: object) -> None:
    if isinstance(value, int) and abs(value) >= BOUND:
        option = "--" + name.replace("_", "-")
        raise DataError(f"{option} {value}: expected a number below {BOUND}")


def import_modules(names: list[str] | None) -> list[str]:
    """Import modules, also those in the working directory, for what they register."""
    names = list(names or [])
    here = str(Path.cwd())
    if names and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        _import(name)
    return names


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    # A user's module may raise anything when it is imported.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise MethodError(
                f"--import {name}: there is no module of that name, neither installed nor in the "
                "working directory"
            ) from error
        message = f"{type(error).__name__}: {one_line(error)}"
        raise MethodError(f"--import {name}: {message}") from error


IMPORT = inspect.Parameter(
    "import_",
    inspect.Parameter.KEYWORD_ONLY,
    default=[],
    annotation=Annotated[
        list[str],
        typer.Option(
            "--import",
            metavar="MODULE",
            help="A Python module to import first, which registers methods or families of your "
            "own; may be repeated.",
            envvar="VITFOLD_IMPORT",
            callback=import_modules,
            is_eager=True,
            rich_help_panel="Plugins",
        ),
    ],
)
"""`--import MODULE`. It is eager, so that what is registered is there for all other options."""
