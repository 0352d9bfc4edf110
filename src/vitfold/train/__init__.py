"""Training: a recipe, checkpoints that a killed run goes on from, and the loop.

Names are imported when they are first used, so that the recipe, which is plain, needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitfold.train.loop import train
    from vitfold.train.outcome import Outcome
    from vitfold.train.recipe import Distillation, Recipe
    from vitfold.train.settings import Settings, TrainingData, create_accelerator

__all__ = [
    "Distillation",
    "Outcome",
    "Recipe",
    "Settings",
    "TrainingData",
    "create_accelerator",
    "train",
]

HOMES = {
    "Distillation": "recipe",
    "Outcome": "outcome",
    "Recipe": "recipe",
    "Settings": "settings",
    "TrainingData": "settings",
    "create_accelerator": "settings",
    "train": "loop",
}
"""The files that public names are defined in."""


if not TYPE_CHECKING:  # for a type checker the names above are all there is

    def __getattr__(name: str) -> Any:
        """A public name, imported at its first use."""
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{HOMES[name]}")
        value = globals()[name] = getattr(home, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
