"""`vitfold explore`: a page on which one looks at what folds make of photographs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options
from vitfold.cli.groups import Group, grouped, option


@dataclass(frozen=True)
class Serving(Group):
    """Where the page is, and what it takes."""

    panel = "Page"

    host: Annotated[
        str, option("Where it listens: this machine alone, unless another address is given.")
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        option(
            "0 takes any that is free.",
            min=0,
            max=65535,
            show_default="7860, or the next that is free",
        ),
    ] = None
    no_browser: Annotated[bool, option("Open no browser.", "--no-browser")] = False
    examples: Annotated[
        Path | None,
        option(
            "A folder of pictures to begin with.",
            metavar="DIR",
            show_default="some that come with the page's library",
        ),
    ] = None
    max_bytes: Annotated[int, option("The largest file that is taken.", min=1)] = 2**24
    max_pixels: Annotated[int, option("The most pixels of a picture that is taken.", min=1)] = (
        50_000_000
    )


@grouped
def explore(
    serving: Serving,
    model_options: options.ModelOptions,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)] = (
        "deit_small_patch16_224"
    ),
) -> None:
    """Open a page: drop a photograph, drag the budget, and see what becomes of the tokens, what is
    lost, what every block costs and how long it takes here; with the Python and the command that
    give the same fold.

    Methods that learn or are calibrated first are looked at as saved plans: --plan DIR, or the
    directory as MODEL. Nothing that is uploaded is kept. Ctrl-C ends it.
    """
    from vitfold.cli.work import explore as work

    work.refuse(serving)
    made = model_options.image_model(model)
    work.show_page(made, model, serving, model_options)
