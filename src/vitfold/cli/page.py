"""Where the page of `vitfold explore` is, and what it takes, as the command line says it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitfold.cli.groups import Group, option


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
