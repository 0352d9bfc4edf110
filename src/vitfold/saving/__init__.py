"""Saving a model, folded or not, and loading it: `plan.json` and, where asked for, its weights."""

from vitfold.saving.plans import file_of, has_backbone, load, needs_model, save, save_model

__all__ = ["file_of", "has_backbone", "load", "needs_model", "save", "save_model"]
