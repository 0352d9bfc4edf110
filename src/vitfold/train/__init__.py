"""Training: a recipe, checkpoints that a killed run goes on from, and the loop."""

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
