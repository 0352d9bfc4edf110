"""What a model says of images, whatever its library: embeddings, logits and dense features."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.tools.answers import classes_of_head

POOLED = ("image_embeds", "pooler_output")
"""Fields of transformers' outputs that stand for an image, the projected first."""

MAPS = ("predicted_depth", "last_hidden_state")
"""Fields that hold something for every place."""

HEADS = ("classifier", "head")
"""What models call the layer that gives logits, where they have no `get_classifier`."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a model says of images; None where it says nothing of the kind.

    embedding: `[B, C]`: what it gives for an image; of a classifier, what its head reads.
    logits: `[B, classes]`, or `[B, classes, H, W]` of a segmenter.
    dense: `[B, N, C]` tokens, `[B, C, H, W]` features or `[B, H, W]` a map.
    """

    embedding: Tensor | None = None
    logits: Tensor | None = None
    dense: Tensor | None = None

    @property
    def channels(self) -> int:
        """The axis of `dense` that is one place's; of a map without one, its last."""
        return 1 if self.dense is not None and self.dense.dim() == 4 else -1


def look(model: nn.Module, images: Tensor) -> Look:
    """What one call of the model says of images."""
    head = _head(model)
    with _reading(head) as read:
        output: Any = model(images)
    if isinstance(output, Mapping):
        return _of_fields(model, output, read)
    if isinstance(output, Sequence) and output and isinstance(output[-1], Tensor):
        output = output[-1]  # the last of several levels of features
    if not isinstance(output, Tensor):
        raise DataError(
            f"a {type(model).__name__} gives a {type(output).__name__}: expected logits, an "
            "embedding or dense features"
        )
    if output.dim() == 2:
        classes = classes_of_head(model) if head is None else head.out_features
        if classes != output.shape[1]:
            return Look(embedding=output)
        # Of a head that cannot be looked into, logits are all that stands for an image.
        return Look(read[-1] if read else output, output)
    if output.dim() == 4 and getattr(model, "classes", None) == output.shape[1]:
        return Look(logits=output)
    return Look(dense=output)


def _of_fields(model: nn.Module, output: Mapping[str, Any], read: list[Tensor]) -> Look:
    logits = output.get("logits")
    pooled = next((output[name] for name in POOLED if output.get(name) is not None), None)
    dense = next((output[name] for name in MAPS if output.get(name) is not None), None)
    if logits is not None and read and read[-1].dim() == 2:
        pooled = read[-1]
    if logits is None and pooled is None and dense is None:
        raise DataError(
            f"a {type(model).__name__} gives {', '.join(output)}: expected logits, an embedding "
            "or dense features"
        )
    return Look(pooled, logits, dense)


def _head(model: Any) -> nn.Linear | None:
    """The layer of a classifier that gives logits."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if head is None:
        head = next((h for name in HEADS if (h := getattr(model, name, None)) is not None), None)
    if isinstance(head, tuple):
        head = head[0]
    return head if isinstance(head, nn.Linear) else None


@contextlib.contextmanager
def _reading(head: nn.Module | None) -> Iterator[list[Tensor]]:
    """What the head of a model reads in the calls within."""
    read: list[Tensor] = []
    if head is None:
        yield read
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        yield read
    finally:
        handle.remove()
