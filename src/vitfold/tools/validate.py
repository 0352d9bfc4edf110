"""Accuracy of a folded model on labelled images, beside the dense one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.tokens.modes import evaluating, mixed
from vitfold.tools.answers import logits
from vitfold.tools.measure import Progress, now

Batch = tuple[Tensor, Tensor]

CONFIDENT = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a model for labelled images.

    labels: `[N]`.
    best: `[N, up to 5]` classes, the likeliest first.
    seconds: in the model alone.
    """

    labels: Tensor
    best: Tensor
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """Accuracies as shares of one; the interval around top-1 is Wilson's, at 95 %."""

    images: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    dense_top1: float
    agreement: float
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        """The figures by field name."""
        return asdict(self)


def interval(hits: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z2 = hits / images, CONFIDENT**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    spread = math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    half = CONFIDENT * spread / (1 + z2 / images)
    # Rounding must not leave the share itself outside at either end.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def score(ours: Predictions, dense: Predictions) -> Report:
    """Shares of right answers, and of the answers that are the dense model's too."""
    images = len(ours.labels)
    if not images:
        raise DataError("no images: the dataset is empty")
    hits = ours.best == ours.labels.unsqueeze(1)
    top1, first = int(hits[:, 0].sum()), dense.best[:, 0]
    low, high = interval(top1, images)
    return Report(
        images=images,
        top1=top1 / images,
        top1_low=low,
        top1_high=high,
        top5=int(hits.sum()) / images,
        dense_top1=int((first == ours.labels).sum()) / images,
        agreement=int((first == ours.best[:, 0]).sum()) / images,
        images_per_second=images / max(ours.seconds, 1e-9),
    )


class Predictor:
    """Runs a model over batches and keeps its predictions."""

    def __init__(self, model: nn.Module, device: torch.device, amp: torch.dtype | None) -> None:
        self.model, self.device, self.amp = model, device, amp
        self.best: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.seconds = 0.0

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Predict one batch."""
        _check_batch(images, labels)
        images = images.to(self.device)
        with torch.inference_mode(), evaluating(self.model), mixed(self.device, self.amp):
            start = now(self.device)
            output = logits(self.model, images)
            self.seconds += now(self.device) - start
        if output.isnan().any():
            raise DataError("the model says nothing but NaN of an image: are its weights numbers?")
        _check_labels(labels, output)
        self.best.append(output.topk(min(5, output.shape[1]), dim=1).indices.cpu())
        self.labels.append(labels.cpu())

    def predictions(self) -> Predictions:
        """The predictions for all batches so far."""
        if not self.labels:
            return Predictions(torch.empty(0), torch.empty(0, 1))
        return Predictions(torch.cat(self.labels), torch.cat(self.best), self.seconds)


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Predictions:
    """The predictions of a model for labelled batches."""
    return _predict_all((model,), batches, device, amp, progress)[0]


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    dense: nn.Module | None = None,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Report:
    """Accuracy of a folded classifier on labelled images, and how often it agrees with the dense
    model; both see every batch.

    batches: pairs of images `[B, C, H, W]`, prepared for the model, and labels `[B]`, as a
        DataLoader yields them.
    dense: what it is compared with; by default the same model without its fold.
    """
    dense = clone(model) if dense is None else dense
    return score(*_predict_all((model, dense), batches, device, amp, progress))


def _predict_all(
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    device: torch.device | None,
    amp: torch.dtype | None,
    progress: Progress,
) -> list[Predictions]:
    """The predictions of several models for the same batches, read once."""
    device = device or next(models[0].parameters()).device
    predictors = [Predictor(model, device, amp) for model in models]
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches came as a {type(batches).__name__}: give pairs of images and labels, as a "
            "DataLoader yields them"
        )
    for images, labels in batches:
        for predictor in predictors:
            predictor.update(images, labels)
        progress()
    return [predictor.predictions() for predictor in predictors]


def _check_batch(images: object, labels: object) -> None:
    both = isinstance(images, Tensor) and isinstance(labels, Tensor)
    if not both or labels.shape != images.shape[:1] or labels.is_floating_point():  # type: ignore[attr-defined]
        shapes = [
            f"{list(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            for x in (images, labels)
        ]
        raise DataError(
            f"a batch of images {shapes[0]} and labels {shapes[1]}: expected images "
            "[B, C, H, W] and a whole number for each, [B]"
        )


def _check_labels(labels: Tensor, output: Tensor) -> None:
    if len(labels) and int(labels.min()) < 0:
        raise DataError("images without a label in the dataset: put them in folders, one a class")
    if len(labels) and int(labels.max()) >= output.shape[1]:
        raise DataError(
            f"label {int(labels.max())} in the dataset, but the model has {output.shape[1]} "
            "classes: give its data, or --class-map"
        )
