"""`vitfold demo`: every method on the embedded model; no network, no data."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import values


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the plot and the pictures.")
    ] = Path("vitfold-demo"),
) -> None:
    """Fold the embedded digits model with every method at about 0.75, 0.6 and 0.5 of its FLOPs.

    Shows accuracy on held-out digits with its 95 % interval, agreement with the dense model, and
    speed here, also as a share of the free-slicing bound; writes a Pareto plot, token pictures and
    the figures.
    """
    from vitfold.cli.work.demo import show_all

    values.directory(output)
    show_all(output)
