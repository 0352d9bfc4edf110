"""`vitfold explore`: a page on which one looks at what folds make of photographs."""

from typing import Annotated

import typer

from vitfold.cli import options
from vitfold.cli.groups import grouped
from vitfold.cli.page import Serving


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
