"""Training: a recipe, checkpoints that a killed run goes on from, and the loop."""

from vitfold.train.loop import Outcome, train
from vitfold.train.recipe import Distillation, Recipe

__all__ = ["Distillation", "Outcome", "Recipe", "train"]
