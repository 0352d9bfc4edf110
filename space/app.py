"""The page of `vitfold explore` as a Space of the hub runs it: open to all, within limits."""

import vitfold
from vitfold.serve.explore.examples import examples
from vitfold.serve.explore.explorer import Explorer
from vitfold.serve.explore.lines import Origin
from vitfold.serve.explore.page import Page, opened, wait
from vitfold.serve.explore.uploads import Limits

MODEL = "deit_small_patch16_224"

LIMITS = Limits(bytes=8_000_000, pixels=24_000_000)


def main() -> None:
    """Serve it until the Space ends."""
    model = vitfold.create_model(MODEL, pretrained=True).eval()
    page = Page(Explorer(model, LIMITS), Origin(MODEL), examples(model))
    with opened(page, host="0.0.0.0", port=7860):
        wait()


if __name__ == "__main__":
    main()
