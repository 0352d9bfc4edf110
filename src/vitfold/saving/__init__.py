"""Saving a model, folded or not, and loading it: `plan.json` and, where asked for, its weights."""

from vitfold.saving.plans import has_backbone, load, needs_model, save, save_model

__all__ = ["has_backbone", "load", "needs_model", "save", "save_model"]
