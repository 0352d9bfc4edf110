"""Models that commands are given by name, and those that they save."""

from pathlib import Path

import torch
from torch import nn

from vitfold.cli import show, values
from vitfold.cli.offline import fetching
from vitfold.errors import DataError, MethodError, PlanError
from vitfold.folding.calls import folds
from vitfold.saving import file_of, has_backbone, load, needs_model
from vitfold.saving.models import create_model, is_file
from vitfold.saving.store import source
from vitfold.segment import Segmenter, create_segmenter, saved_classes

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
    """The segmenter in a directory or of a file, or a new one with random weights around an
    encoder."""
    if is_file(name):
        return of_file(name, model(name, kwargs, True, img_size, on), classes)
    saved = saved_classes(name)
    if saved is not None and classes not in (None, saved):
        raise DataError(f"{name} has {saved} classes: leave out --num-classes")
    if saved is not None:
        return model(name, kwargs, True, img_size, on)
    arguments = values.arguments(kwargs, img_size)
    return create_segmenter(name, classes or CLASSES, decoder, **arguments).to(on).eval()


def of_file(name: str, made: nn.Module, classes: int | None) -> Segmenter:
    """The segmenter that a file made, refused where it is none, or has not so many classes."""
    if not isinstance(made, Segmenter):
        raise DataError(
            f"{name} makes a {type(made).__name__}: for --task segment, let it return a "
            "vitfold.segment.Segmenter(encoder, classes)"
        )
    if classes not in (None, made.classes):
        raise DataError(f"{name} has {made.classes} classes: leave out --num-classes")
    return made


def planned(made: nn.Module, plan: Path | None) -> nn.Module:
    """The model, folded by a plan and with its weights if it has them; as it is without a plan."""
    if plan is None:
        return made
    with fetching(str(plan), False, ""):
        plan = source(plan)
    try:
        ours = load(plan, made)
    except PlanError as error:
        if (line := file_of(plan)) is None:
            raise
        raise PlanError(f"{error}: it was saved of {line}") from error
    if not folds(ours) and not needs_model(plan):
        raise MethodError(f"--plan {plan} is a dense model: give it in the place of MODEL")
    if has_backbone(plan):
        show.note(f"--plan {plan} comes with weights: they are in the place of the model's own")
    return ours


def written(name: str, directory: Path) -> None:
    """Say what was saved, and how it is opened where its directory is not enough for that."""
    show.written(directory)
    if needs_model(directory):
        line = file_of(directory) or name
        show.note(f"to go on with it, give the model again: {line} --plan {directory}")
