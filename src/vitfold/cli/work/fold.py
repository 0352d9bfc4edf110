"""A model that a command is given, folded as its options say."""

from pathlib import Path

from torch import nn

from vitfold.cli import options, show
from vitfold.errors import MethodError
from vitfold.folding.calls import folds
from vitfold.folding.fold import fold
from vitfold.methods.base import learns
from vitfold.saving import has_backbone, load


def folded_by(model: nn.Module, plan: Path | None, choice: options.Choice) -> nn.Module:
    """The model, folded by the plan or by the method; what came folded stays as it is."""
    if choice.is_set and (plan is not None or folds(model)):
        what = f"--plan {plan}" if plan is not None else "a saved plan"
        raise MethodError(f"{what} says how to fold: leave out --method, --r, --flops and the like")
    if plan is not None:
        ours = load(plan, model)
        if not folds(ours):
            raise MethodError(f"--plan {plan} is a dense model: give it in the place of MODEL")
        if has_backbone(plan):
            show.note(f"--plan {plan} comes with weights: they are in the place of the model's own")
        return ours
    if folds(model):
        return model
    method = choice.build()
    if learns(type(method)):
        show.note(
            f"{method}: nothing is learned yet, it is as training finds it: `vitfold train MODEL "
            f"--method {method.name} ...`, and give what that writes"
        )
    return fold(model, method)
