"""From pictures to a model's input: the transform that its config asks for, in evaluation and in
training, and a model on images that are normalized for another."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.errors import DataError, one_line
from vitfold.tools.draw import Channels
from vitfold.tools.looks import Around
from vitfold.tools.wants import data_config

Prepare = Callable[[Image.Image], Tensor]


class Renormalized(Around):
    """A model that takes images normalized by the mean and std of another.

    own: mean and std of the model's channels.
    other: those by which the images are normalized.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, own: Channels, other: Channels) -> None:
        super().__init__()
        self.model = model
        (mean, std), (other_mean, other_std) = torch.tensor(own), torch.tensor(other)
        self.register_buffer("scale", (other_std / std)[:, None, None])
        self.register_buffer("shift", ((other_mean - mean) / std)[:, None, None])

    def forward(self, x: Tensor) -> Any:
        """The model's output on `[B, C, H, W]`, normalized anew by its own mean and std."""
        return self.model((x * self.scale + self.shift).to(x.dtype))


def renormalized(model: nn.Module, other: nn.Module) -> nn.Module:
    """The model on images as `preprocessing(other)` makes them; itself where its mean and std are
    the same."""
    own, theirs = _channels(model), _channels(other)
    if own == theirs:
        return model
    return Renormalized(model, own, theirs).to(next(model.parameters()).device)


def _channels(model: nn.Module) -> Channels:
    config = data_config(model)
    return config["mean"], config["std"]


def preprocessing(model: nn.Module) -> Prepare:
    """timm's evaluation transform, from a picture to `[C, H, W]`."""
    return _transform(data_config(model), is_training=False)


def in_bytes(config: dict[str, Any]) -> Prepare:
    """What `preprocessing` does before it normalizes: from a picture to `[C, H, W]` in 8 bits."""
    return _transform(config, is_training=False, normalize=False)


def normalize(pixels: Tensor, config: dict[str, Any]) -> Tensor:
    """The rest of it, for a batch: the same numbers, on the device where the batch is."""
    mean, std = (torch.tensor(config[name], device=pixels.device) for name in ("mean", "std"))
    return (pixels.float() / 255).sub_(mean[:, None, None]).div_(std[:, None, None])


def _transform(config: dict[str, Any], **options: Any) -> Prepare:
    """timm's transform, as `[C, H, W]`; a model of one channel gets grey pictures."""
    channels = config["input_size"][0]
    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels: pictures have 1 or 3")
    if min(config["std"]) <= 0:
        raise DataError(f"std={list(config['std'])}: expected numbers above 0")
    transform: Prepare = timm.data.create_transform(**config, **options)
    if not callable(transform):
        raise DataError("expected options that make one transform of all")
    return transform if channels == 3 else partial(_grey, transform)


def _grey(transform: Prepare, picture: Image.Image) -> Tensor:
    return transform(picture.convert("L"))


def augmentation(model: nn.Module, options: dict[str, Any]) -> Prepare:
    """timm's training transform with these options, from a picture to `[C, H, W]`."""
    config = data_config(model) | options
    try:
        return _transform(config, is_training=True)
    except Exception as error:
        raise DataError(f"augmentation {options}: {one_line(error)}") from error
