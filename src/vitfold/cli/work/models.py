"""Models that commands are given by name, and their folds."""

from pathlib import Path

import torch
from torch import nn

from vitfold.cli import options, show, values
from vitfold.cli.offline import fetching
from vitfold.errors import DataError, MethodError
from vitfold.folding.calls import folds
from vitfold.folding.fold import fold
from vitfold.methods.base import learns
from vitfold.saving import has_backbone, load
from vitfold.saving.models import create_model
from vitfold.segment import create_segmenter, saved_classes

CLASSES = 150
"""Of a segmenter that is only timed, where nobody says how many: ADE20K's."""


def model(
    name: str, kwargs: list[str], pretrained: bool, img_size: int | None, on: torch.device
) -> nn.Module:
    """The model by name, in eval mode, where it is to run; random weights are always the same."""
    torch.manual_seed(0)
    arguments = values.arguments(kwargs, img_size)
    with fetching(name, pretrained, WITHOUT):
        return create_model(name, pretrained=pretrained, **arguments).to(on).eval()


WITHOUT = "give --no-pretrained for random weights, or a directory that holds weights"
"""What to do where published weights cannot be fetched."""


def segmenter(
    name: str,
    kwargs: list[str],
    img_size: int | None,
    decoder: str,
    classes: int | None,
    on: torch.device,
) -> nn.Module:
    """The segmenter in a directory, or a new one with random weights around an encoder."""
    saved = saved_classes(name)
    if saved is not None and classes not in (None, saved):
        raise DataError(f"{name} has {saved} classes: leave out --num-classes")
    if saved is not None:
        return model(name, kwargs, True, img_size, on)
    arguments = values.arguments(kwargs, img_size)
    return create_segmenter(name, classes or CLASSES, decoder, **arguments).to(on).eval()


def folded_by(model: nn.Module, plan: Path | None, choice: options.Choice) -> nn.Module:
    """The model, folded by the plan or by the method; what came folded stays as it is."""
    if choice.given and (plan is not None or folds(model)):
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
