"""The page of `vitfold explore`, open until somebody ends it."""

from torch import nn

from vitfold.cli import options, show, values
from vitfold.cli.page import Serving
from vitfold.folding.calls import folds
from vitfold.saving.models import is_file
from vitfold.saving.sources.file import takes
from vitfold.serve.explore.examples import examples
from vitfold.serve.explore.explorer import Explorer
from vitfold.serve.explore.lines import Origin
from vitfold.serve.explore.page import Page, library, opened, wait
from vitfold.serve.explore.uploads import Limits


def refuse(serving: Serving) -> None:
    """Refuse what cannot be shown, before a model is made."""
    library()
    Limits(serving.max_bytes, serving.max_pixels)


def show_page(model: nn.Module, name: str, serving: Serving, made: options.ModelOptions) -> None:
    """The page, until Ctrl-C."""
    explorer = Explorer(model, Limits(serving.max_bytes, serving.max_pixels))
    origin = Origin(
        name,
        made.pretrained if not is_file(name) or takes(name, "pretrained") else None,
        values.arguments(made.model_kwargs, made.img_size),
        made.plan,
        made.device,
        bool(folds(model)),
    )
    page = Page(explorer, origin, examples(model, serving.examples))
    with opened(page, serving.host, serving.port, not serving.no_browser) as address:
        show.console.print(f"{page.title}\n{address} (Ctrl-C ends it)", soft_wrap=True)
        wait()
    show.note("closed")
