"""Models that commands are given by name."""

import torch
from torch import nn

from vitfold.cli import values
from vitfold.cli.offline import fetching
from vitfold.errors import DataError
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
