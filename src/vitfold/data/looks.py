"""How a model wants its images: its own preprocessing, and that of another."""

from collections.abc import Callable, Sequence
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.errors import DataError, one_line
from vitfold.folding.families import find
from vitfold.segment.looks import Look
from vitfold.tools.draw import Channels

Prepare = Callable[[Image.Image], Tensor]


def data_config(model: nn.Module) -> dict[str, Any]:
    """Size, interpolation, mean and deviation, crop: what the model expects."""
    found = find(model)
    config: dict[str, Any] = timm.data.resolve_data_config(found.preprocessing(), model=found.trunk)
    channels = {name: tuple(config[name])[: found.size[0]] for name in ("mean", "std")}
    return config | channels | {"input_size": found.size}


class Renormalized(nn.Module):
    """A model on images whose channels are prepared for another."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, wanted: Channels, given: Channels) -> None:
        super().__init__()
        self.model = model
        (mean, std), (other_mean, other_std) = torch.tensor(wanted), torch.tensor(given)
        self.register_buffer("scale", (other_std / std)[:, None, None])
        self.register_buffer("shift", ((other_mean - mean) / std)[:, None, None])

    def forward(self, x: Tensor) -> Any:
        """What the model says of the images as it wants them."""
        return self.model((x * self.scale + self.shift).to(x.dtype))


def renormalized(model: nn.Module, other: nn.Module) -> nn.Module:
    """The model for images that are prepared for another; itself where it wants them alike."""
    wanted, given = _channels(model), _channels(other)
    if wanted == given:
        return model
    return Renormalized(model, wanted, given).to(next(model.parameters()).device)


def _channels(model: nn.Module) -> Channels:
    config = data_config(model)
    return config["mean"], config["std"]


def preprocessing(model: nn.Module) -> Prepare:
    """From a picture to the model's input."""
    return _transform(data_config(model), is_training=False)


def _transform(config: dict[str, Any], **options: Any) -> Prepare:
    """timm's transform; for a model of one channel, of grey pictures."""
    channels = config["input_size"][0]
    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels: pictures have 1 or 3")
    if min(config["std"]) <= 0:
        raise DataError(f"std={list(config['std'])}: expected numbers above 0")
    transform: Prepare = timm.data.create_transform(**config, **options)
    if not callable(transform):
        raise DataError("expected options that make one transform of all")
    return transform if channels == 3 else lambda picture: transform(picture.convert("L"))


def augmentation(model: nn.Module, options: dict[str, Any]) -> Prepare:
    """From a picture to the model's input, in one of many ways."""
    config = data_config(model) | options
    try:
        return _transform(config, is_training=True)
    except Exception as error:
        raise DataError(f"augmentation {options}: {one_line(error)}") from error


def scene_look(model: nn.Module) -> Look:
    """From a photograph of any size to images for windows to slide over."""
    return Look(*scene_traits(model))


def scene_traits(model: nn.Module) -> tuple[tuple[int, int], Sequence[float], Sequence[float]]:
    """The window of a segmenter, and the channels that it expects."""
    config = data_config(model)
    if config["input_size"][0] != 3:
        raise DataError(f"the model takes {config['input_size'][0]} channels: photographs have 3")
    return tuple(config["input_size"][1:]), config["mean"], config["std"]
