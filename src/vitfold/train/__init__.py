"""Training: a recipe, checkpoints that a killed run goes on from, and the loop."""

from vitfold.train.loop import train
from vitfold.train.outline import Outcome
from vitfold.train.recipe import Distillation, Recipe

__all__ = ["Distillation", "Outcome", "Recipe", "train"]
