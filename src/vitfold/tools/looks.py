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
    def images(self) -> int:
        """How many images it is of."""
        first = next(x for x in (self.embedding, self.logits, self.dense) if x is not None)
        return len(first)

    def kept(self) -> "Look":
        """What is kept of many images, off the device; features of every place only where nothing
        stands for an image."""
        dense = self.dense if self.embedding is None and self.logits is None else None
        return Look(*(x if x is None else x.cpu() for x in (self.embedding, self.logits, dense)))

    @property
    def channels(self) -> int:
        """The axis of `dense` that is one place's; of a map without one, its last."""
        return 1 if self.dense is not None and self.dense.dim() == 4 else -1


def look(model: nn.Module, images: Tensor) -> Look:
    """What one call of the model says of images."""
    with reading(model) as read:
        output = model(images)
    return look_of(model, output, read)


def look_of(model: nn.Module, output: Any, read: Sequence[Tensor]) -> Look:
    """What an output of the model says.

    read: what its head has read in that call.
    """
    head = head_of(model)
    if isinstance(output, Mapping):
        return _of_fields(model, output, read)
    output = getattr(output, "logits", output)  # of an output of one's own
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


def _of_fields(model: nn.Module, output: Mapping[str, Any], read: Sequence[Tensor]) -> Look:
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


def head_of(model: Any) -> nn.Linear | None:
    """The layer of a classifier that gives logits."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if head is None:
        head = next((h for name in HEADS if (h := getattr(model, name, None)) is not None), None)
    if isinstance(head, tuple):
        head = head[0]
    return head if isinstance(head, nn.Linear) else None


@contextlib.contextmanager
def reading(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the head of a model reads in the calls within."""
    read: list[Tensor] = []
    if (head := head_of(model)) is None:
        yield read
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        yield read
    finally:
        handle.remove()


class Around(nn.Module):
    """A model around another one: its head is the other's."""

    model: nn.Module

    @property
    def num_classes(self) -> int | None:
        """How many classes the model tells apart; None where it does not say so."""
        return classes_of_head(self.model)

    def get_classifier(self) -> nn.Linear | None:
        """The layer of the model that gives logits."""
        return head_of(self.model)
