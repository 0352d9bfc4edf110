"""What the method on a model learns, and how it wants to be trained."""

from collections.abc import Iterator

from torch import nn

from vitfold.folding.calls import folds
from vitfold.methods.learned import Learned
from vitfold.methods.recipe import MethodRecipe


def learned_modules(model: nn.Module) -> list[Learned]:
    """The modules that methods learn on the trunks of a model."""
    return [record.learned for record in folds(model) if record.learned is not None]


def learned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that methods learn, by the methods' own names."""
    for learned in learned_modules(model):
        yield from learned.named_parameters()


def kinds(names: Iterator[str]) -> list[str]:
    """The first parts of such names, `merge` of `merge.3`, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def method_recipe(model: nn.Module) -> MethodRecipe:
    """How the method on a model wants to be trained; for a dense model, no wishes."""
    methods = [record.method for record in folds(model)]
    return methods[-1].training if methods else MethodRecipe()


def is_ragged(model: nn.Module) -> bool:
    """Whether images keep numbers of tokens of their own, which training moves."""
    return any(record.method.ragged for record in folds(model))


def trained_share(model: nn.Module) -> float | None:
    """The share of the dense FLOPs that what is learned is trained for, where there is one."""
    methods = [record.method for record in folds(model)]
    return getattr(methods[0], "flops", None) if methods and methods[0].ragged else None
