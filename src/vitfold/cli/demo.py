"""`vitfold demo`: what folding gains and costs here; no network, no data."""

from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import values


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for pictures, plot and figures.")
    ] = Path("vitfold-demo"),
) -> None:
    """What folding gains and costs here: speed, pictures, accuracy.

    Times DeiT-S, dense and folded, in eager torch and in the fastest runtime that is installed
    (random weights serve for that); draws what becomes of the tokens of two photographs; and folds
    the embedded digits model at 0.75 and 0.5 of its FLOPs by five methods, without training, with
    accuracy on held-out digits, its 95 % interval and agreement with the dense model.
    """
    from vitfold.cli.work.demo import show_all

    values.directory(output)
    show_all(output)
