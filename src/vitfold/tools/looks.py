"""What a model says of images, whatever its library: embeddings, logits and dense features."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.tools.answers import classes_of_head

POOLED = ("image_embeds", "pooler_output")
"""Fields of transformers' outputs that stand for an image, the projected first."""

DEPTH = "predicted_depth"
"""The field that holds a depth for every pixel."""

MAPS = (DEPTH, "last_hidden_state")
"""Fields that hold something for every place."""

MASKS = "pred_masks"
"""The field that holds logits of masks."""

QUERIES = ("class_queries_logits", "masks_queries_logits")
"""Fields of models that ask for segments: the class of each, and its mask."""

HEADS = ("classifier", "head")
"""What models call the layer that gives logits, where they have no `get_classifier`."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a model says of images; None where it says nothing of the kind.

    embedding: `[B, C]`: what it gives for an image; of a classifier, what its head reads.
    logits: `[B, classes]`, or `[B, classes, H, W]` of a segmenter.
    dense: `[B, N, C]` tokens, `[B, C, H, W]` features or `[B, H, W]` a map.
    depth: `[B, H, W]`: how far every pixel is, or the inverse of it.
    masks: `[B, K, H, W]` true where a mask is, or `[B, H, W]` the class of every pixel.
    """

    embedding: Tensor | None = None
    logits: Tensor | None = None
    dense: Tensor | None = None
    depth: Tensor | None = None
    masks: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor | None, ...]:
        """All that it may say."""
        return self.embedding, self.logits, self.dense, self.depth, self.masks

    @property
    def images(self) -> int:
        """How many images it is of."""
        return len(next(part for part in self.parts if part is not None))

    def kept(self) -> "Look":
        """What is kept of many images, off the device; features of every place only where nothing
        stands for an image."""
        others = self.embedding, self.logits, self.masks
        dense = self.dense if all(part is None for part in others) else None
        parts = self.embedding, self.logits, dense, self.depth, self.masks
        return Look(*(x if x is None else x.cpu() for x in parts))

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
        return Look(logits=output, masks=output.argmax(dim=1))
    return Look(dense=output)


def _of_fields(model: nn.Module, output: Mapping[str, Any], read: Sequence[Tensor]) -> Look:
    logits = output.get("logits")
    pooled = next((output[name] for name in POOLED if output.get(name) is not None), None)
    dense = next((output[name] for name in MAPS if output.get(name) is not None), None)
    if logits is not None and read and read[-1].dim() == 2:
        pooled = read[-1]
    masks = _masks(output, logits)
    if all(part is None for part in (logits, pooled, dense, masks)):
        raise DataError(
            f"a {type(model).__name__} gives {', '.join(output)}: expected logits, an embedding "
            "or dense features"
        )
    return Look(pooled, logits, dense, output.get(DEPTH), masks)


def _masks(output: Mapping[str, Any], logits: Tensor | None) -> Tensor | None:
    """The masks in an output, or the class of every pixel."""
    if output.get(MASKS) is not None:
        there: Tensor = output[MASKS] > 0
        return there.flatten(1, -3) if there.dim() > 3 else there.unsqueeze(1)
    classes, masks = (output.get(name) for name in QUERIES)
    if classes is not None and masks is not None:
        likely = classes.softmax(dim=-1)[..., :-1]  # the last says that there is none
        return torch.einsum("bqc,bqhw->bchw", likely, masks.sigmoid()).argmax(dim=1)
    return logits.argmax(dim=1) if logits is not None and logits.dim() == 4 else None


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
