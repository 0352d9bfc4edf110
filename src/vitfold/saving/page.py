"""The page of a saved fold, in the form of the hub's cards."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vitfold.saving import sources
from vitfold.saving.schema import Plan

FILE = "README.md"

HERE = "this directory"
"""What a page calls the place of its fold; on the hub, its name there."""

TAGS = ("vitfold", "vision-transformer", "token-merging")


class About(NamedTuple):
    """What a page says of a model.

    name: what made it, or its class.
    base: its name on the hub; None where it has none.
    by_name: whether its plan is enough to make it again.
    """

    name: str
    base: str | None
    by_name: bool


def about(source: str, name: str) -> About:
    """What is known of a model of that name."""
    base = {"timm": f"timm/{name}", "hf": name}.get(source)
    return About(name, base, source != sources.OTHER and sources.source(source).builds)


class Measured(NamedTuple):
    """Figures for the front of a page.

    dataset: what they were measured on.
    figures: by name.
    """

    dataset: str
    figures: Mapping[str, float]


def front(model: About, measured: Measured | None = None) -> Iterator[str]:
    """The front of a page, as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    figures = measured or Measured("", {})
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type="images",
            dataset_name=figures.dataset,
            metric_type=name,
            metric_value=value,
        )
        for name, value in figures.figures.items()
    ]
    data = ModelCardData(
        library_name="vitfold",
        base_model=model.base,
        tags=list(TAGS),
        model_name=model.name if results else None,
        eval_results=results or None,
    )
    yield from ("---", data.to_yaml(), "---")


def loading(model: About) -> Iterator[str]:
    """How it is loaded."""
    given = ")" if model.by_name else ", model)  # the dense model, made as before"
    yield from ("```python", "import vitfold", "", f'model = vitfold.load("{HERE}"{given}', "```")


def plain(plan: Plan) -> Iterator[str]:
    """The page of a fold that nobody has measured."""
    known = about(plan.model.source, plan.model.name)
    yield from front(known)
    yield from (f"# {known.name}, {'folded' if plan.method else 'dense'}", "")
    if plan.method:
        yield f"`{plan.method}`"
        if any(plan.schedule):
            yield f"Tokens that leave each block: {', '.join(map(str, plan.schedule))}."
        yield ""
    yield from loading(known)
