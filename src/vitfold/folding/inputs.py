"""What a model is called with: images, or a mapping of inputs by name."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vitfold.errors import DataError

Inputs = Tensor | Mapping[str, Any]
"""Images, or what a model takes by name."""


IMAGES = ("pixel_values", "pixel_values_videos", "x", "patches")
"""What images are called among the inputs of a model."""

VALUES = ("spatial_shapes", "image_grid_hw", "image_sizes", "grid_thw", "merge_sizes")
"""Inputs whose values a model looks at, and not only computes with."""

MASKS = ("pixel_attention_mask",)
"""Inputs that say what is padding, whose values a model looks at, and without which it runs: what
is padding is computed as well."""


def check(inputs: object) -> None:
    """Refuse what is no input of any model."""
    if not isinstance(inputs, Tensor | Mapping):
        raise DataError(
            f"a {type(inputs).__name__} is no input: give images [B, C, H, W], or what the model "
            "takes by name"
        )
    if not isinstance(inputs, Tensor) and not any(isinstance(v, Tensor) for v in inputs.values()):
        raise DataError("there is no tensor among these inputs: give images by name")


def images_in(inputs: Inputs) -> Tensor:
    """The images among these inputs, or else the first tensor."""
    if isinstance(inputs, Tensor):
        return inputs
    tensors = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    images: Tensor = inputs[next((name for name in IMAGES if name in tensors), tensors[0])]
    return images


def batches_in(images: Inputs | Iterable[Any]) -> Iterator[Inputs]:
    """Batches, one or many, without the labels that come beside them; refused where they hold
    what is no number, of which nothing can be learned."""
    batches: Iterable[Any] = [images] if isinstance(images, Tensor | Mapping) else images
    for number, batch in enumerate(batches):
        inputs: Inputs = batch[0] if isinstance(batch, tuple | list) else batch
        if not images_in(inputs).isfinite().all():
            raise DataError(f"batch {number} holds values that are no numbers, or infinite")
        yield inputs


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model on images, or on named inputs."""
    if not isinstance(inputs, Mapping):
        return model(inputs)
    if "patches" in inputs:  # NaFlex takes them in one piece
        return model(inputs)
    return model(**inputs)


def lacks_text(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model reads text too, and these inputs have none."""
    reads = "input_ids" in inspect.signature(model.forward).parameters
    return reads and not (isinstance(inputs, Mapping) and "input_ids" in inputs)
