"""A model that a command is given, folded as its options say."""

from pathlib import Path

from torch import nn

from vitfold.cli import options, show
from vitfold.errors import MethodError
from vitfold.folding.calls import folds
from vitfold.folding.fold import fold
from vitfold.methods.base import learns


def folded_by(model: nn.Module, plan: Path | None, choice: options.Choice) -> nn.Module:
    """The model, folded by the method; what came folded, or is by the plan, stays as it is."""
    if folds(model):
        if choice.is_set:
            what = "a saved plan" if plan is None else f"--plan {plan}"
            raise MethodError(
                f"{what} says how to fold: leave out --method, --r, --flops and the like"
            )
        return model
    method = choice.build()
    if learns(type(method)):
        show.note(
            f"{method}: nothing is learned yet, it is as training finds it: `vitfold train MODEL "
            f"--method {method.name} ...`, and give what that writes"
        )
    return fold(model, method)
