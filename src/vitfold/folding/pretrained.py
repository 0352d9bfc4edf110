"""What `save_pretrained` of transformers leaves out: how a model is folded."""

import functools
import warnings
from typing import Any

from torch import nn

from vitfold.folding.calls import folds

ENTRY = "save_pretrained"


def warn_of_saving(model: nn.Module) -> None:
    """Let whatever is in a folded model and saves itself say that it is saved dense."""
    for module in model.modules():
        if hasattr(type(module), ENTRY) and ENTRY not in vars(module):
            module.__dict__[ENTRY] = functools.partial(_save, module)


def save_as_before(model: nn.Module) -> None:
    """Take off the warning that `warn_of_saving` put on a model."""
    for module in model.modules():
        if getattr(vars(module).get(ENTRY), "func", None) is _save:
            del module.__dict__[ENTRY]


def _save(module: Any, *args: Any, **kwargs: Any) -> Any:
    if folds(module):
        warnings.warn(
            f"{ENTRY} keeps nothing of how a {type(module).__name__} is folded, and what is loaded "
            "again is dense: vitfold.save(model, directory, backbone=True) keeps it",
            stacklevel=2,
        )
    return type(module).save_pretrained(module, *args, **kwargs)
