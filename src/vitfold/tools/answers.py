"""Logits of models, and their loss."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import DataError

ONLY = (
    "{} gives a class to every pixel: train, validate, bench, trace, search and freeze take it, by "
    "--task segment"
)

IGNORED = -100
"""The label of what counts for nothing."""


def classes_of_head(model: nn.Module) -> int | None:
    """How many classes a model tells apart; None where it does not say so."""
    config = getattr(model, "config", None)
    classes: int | None = getattr(model, "num_classes", getattr(config, "num_labels", None))
    return classes


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """`[B, classes]` logits, or `[B, classes, H, W]` of a segmenter."""
    return answers_of(model, model(images))


def answers_of(model: nn.Module, output: Any) -> Tensor:
    """The logits in an output of the model."""
    if getattr(model, "num_classes", None) == 0:
        raise DataError(f"this {type(model).__name__} has no head: a classifier is needed")
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        raise DataError(
            f"{type(model).__name__} gives no logits: a classifier or a segmenter is needed"
        )
    return output


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """`[B, classes]`: the logits of a classifier of either library."""
    return logits_of(model, model(images))


def logits_of(model: nn.Module, output: Any) -> Tensor:
    """The logits of a classifier in its output."""
    scores = answers_of(model, output)
    if scores.dim() != 2:
        raise DataError(ONLY.format(type(model).__name__))
    return scores


def cross_entropy(output: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over all labels that count; zero where none does.

    labels: classes `[B]` or `[B, H, W]`, or shares of classes `[B, classes]`.
    """
    classes = not labels.is_floating_point()
    # Elsewhere reading values would wait for the device, or break the graph.
    if classes and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_labels(labels, output.shape[1])
    if labels.dim() < 3:
        return F.cross_entropy(output, labels, label_smoothing=smoothing)
    known = (labels != IGNORED).sum().clamp(min=1)
    loss = F.cross_entropy(output, labels, label_smoothing=smoothing, reduction="sum")
    return loss / known


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels of classes that there are not."""
    known = labels[labels != IGNORED]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < classes:
        none = f"; pixels of no class are {IGNORED}" if labels.dim() == 3 else ""
        raise DataError(
            f"labels reach from {int(known.min())} to {int(known.max())}: the model has {classes} "
            f"classes, from 0{none}"
        )
