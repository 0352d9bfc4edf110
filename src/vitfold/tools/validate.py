"""Accuracy of a folded model on labelled images, beside the dense one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.tokens.modes import evaluating, mixed
from vitfold.tools.answers import logits_of
from vitfold.tools.fidelity import Comparison, Fidelity
from vitfold.tools.intervals import interval
from vitfold.tools.looks import Look, look_of, reading
from vitfold.tools.measure import Progress, now

Batch = tuple[Tensor, Tensor]


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
    """Accuracies as shares of one; the interval around top-1 is Wilson's, at 95 %.

    fidelity: how near it stays to the dense model, whatever the labels are; None where that was not
        looked at.
    """

    images: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    dense_top1: float
    agreement: float
    images_per_second: float
    fidelity: Fidelity | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by field name, those of fidelity among them."""
        figures = {name: value for name, value in vars(self).items() if name != "fidelity"}
        beside = {} if self.fidelity is None else self.fidelity.to_json()
        return figures | beside | figures


def score(ours: Predictions, dense: Predictions, fidelity: Fidelity | None = None) -> Report:
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
        fidelity=fidelity,
    )


class Predictor:
    """Runs a model over batches and keeps its predictions."""

    def __init__(self, model: nn.Module, device: torch.device, amp: torch.dtype | None) -> None:
        self.model, self.device, self.amp = model, device, amp
        self.best: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.seconds = 0.0

    def update(self, images: Tensor, labels: Tensor) -> Look:
        """Predict one batch. What the model said of it."""
        _check_batch(images, labels)
        answer, output = self._call(images)
        scores = logits_of(self.model, output)
        if scores.isnan().any():
            raise DataError("the model says nothing but NaN of an image: are its weights numbers?")
        check_labelled(labels, scores)
        self._keep(scores)
        self.labels.append(labels.cpu())
        return answer

    def look(self, images: Tensor) -> Look:
        """What the model says of one batch without labels."""
        answer, _ = self._call(images)
        if answer.logits is not None and answer.logits.dim() == 2:
            self._keep(answer.logits)
        return answer

    def _call(self, images: Tensor) -> tuple[Look, Any]:
        """What the model says, and its output. The time is that of the call alone."""
        images = images.to(self.device)
        with (
            torch.inference_mode(),
            evaluating(self.model),
            mixed(self.device, self.amp),
            reading(self.model) as read,
        ):
            start = now(self.device)
            output = self.model(images)
            self.seconds += now(self.device) - start
        return look_of(self.model, output, read), output

    def _keep(self, scores: Tensor) -> None:
        self.best.append(scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu())

    def predictions(self) -> Predictions:
        """The predictions for all batches so far."""
        labels = torch.cat(self.labels) if self.labels else torch.empty(0)
        best = torch.cat(self.best) if self.best else torch.empty(0, 1)
        return Predictions(labels, best, self.seconds)


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Predictions:
    """The predictions of a model for labelled batches."""
    predictor = Predictor(model, device or next(model.parameters()).device, amp)
    for images, labels in _checked(batches):
        predictor.update(images, labels)
        progress()
    return predictor.predictions()


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    dense: nn.Module | None = None,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Report:
    """Accuracy of a folded classifier on labelled images, how often it agrees with the dense model,
    and how near it stays to it; both see every batch once.

    batches: pairs of images `[B, C, H, W]`, prepared for the model, and labels `[B]`, as a
        DataLoader yields them.
    dense: what it is compared with; by default the same model without its fold.
    """
    dense = clone(model) if dense is None else dense
    on = device or next(dense.parameters()).device
    predictors, comparison = [Predictor(each, on, amp) for each in (model, dense)], Comparison()
    for images, labels in _checked(batches):
        comparison.add(*(predictor.update(images, labels) for predictor in predictors))
        progress()
    ours, theirs = (predictor.predictions() for predictor in predictors)
    return score(ours, theirs, comparison.result() if len(ours.labels) else None)


def _checked(batches: Iterable[Batch]) -> Iterable[Batch]:
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches came as a {type(batches).__name__}: give pairs of images and labels, as a "
            "DataLoader yields them"
        )
    return batches


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


def check_labelled(labels: Tensor, output: Tensor) -> None:
    """Refuse images without a label, and labels of classes that `output[B, classes]` has not."""
    if len(labels) and int(labels.min()) < 0:
        raise DataError("images without a label in the dataset: put them in folders, one a class")
    if len(labels) and int(labels.max()) >= output.shape[1]:
        raise DataError(
            f"label {int(labels.max())} in the dataset, but the model has {output.shape[1]} "
            "classes: give its data, or --class-map"
        )
