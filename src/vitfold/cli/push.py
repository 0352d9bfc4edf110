"""`vitfold push`: a saved fold for others, on the hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What tune, calibrate, freeze, search or train wrote."),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Made where it is not there yet.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is for its owner alone.")
    ] = False,
    branch: Annotated[str | None, typer.Option(help="In place of the main one.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "A fold by vitfold",
) -> None:
    """Put a saved fold on the hub: its plan, what was learned, and its page. The model's own
    weights go there if they were saved with it.

    Log in by `hf auth login`, or set HF_TOKEN. Every command takes hub:USER/NAME as a plan.
    """
    from vitfold.cli import show
    from vitfold.saving.hub import push as push_

    name = push_(directory, repository, private=private, branch=branch, message=message)
    show.console.print(f"on the hub: {name}", markup=False, highlight=False)
    show.note(f'vitfold.load("{name}") loads it')
