"""Accuracy of a folded model on labelled images, beside the dense one."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.measure import Progress, evaluating

Batch = tuple[Tensor, Tensor]

CONFIDENT = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


@dataclass
class Score:
    """Predictions so far.

    agreement: those that are the dense model's prediction too.
    seconds: in the folded model alone.
    """

    images: int = 0
    top1: int = 0
    top5: int = 0
    dense_top1: int = 0
    agreement: int = 0
    seconds: float = field(default=0.0)

    def add(self, logits: Tensor, dense: Tensor, labels: Tensor, seconds: float) -> None:
        """Count one batch."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels.unsqueeze(1)
        self.images += len(labels)
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.sum())
        self.dense_top1 += int((dense.argmax(1) == labels).sum())
        self.agreement += int((dense.argmax(1) == best[:, 0]).sum())
        self.seconds += seconds

    def report(self) -> "Report":
        """The shares."""
        if not self.images:
            raise DataError("no images: the dataset is empty")
        low, high = interval(self.top1, self.images)
        return Report(
            images=self.images,
            top1=self.top1 / self.images,
            top1_low=low,
            top1_high=high,
            top5=self.top5 / self.images,
            dense_top1=self.dense_top1 / self.images,
            agreement=self.agreement / self.images,
            images_per_second=self.images / max(self.seconds, 1e-9),
        )


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
        """By field name."""
        return asdict(self)


def interval(hits: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z2 = hits / images, CONFIDENT**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    spread = math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    half = CONFIDENT * spread / (1 + z2 / images)
    # Rounding must not leave the share itself outside at either end.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def validate(
    folded: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Report:
    """Run both models over labelled batches."""
    device = device or next(folded.parameters()).device
    score = Score()
    with torch.inference_mode(), evaluating(folded), evaluating(dense), _amp(device, amp):
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            start = time.perf_counter()
            logits = _logits(folded, images)
            elapsed = _elapsed(start, device)
            _check_labels(labels, logits)
            score.add(logits, _logits(dense, images), labels, elapsed)
            progress()
    return score.report()


def limited(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """The first `limit` images."""
    left = math.inf if limit is None else limit
    for images, labels in batches:
        if left <= 0:
            return
        keep = int(min(left, len(labels)))
        yield images[:keep], labels[:keep]
        left -= keep


def _amp(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _elapsed(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    output = model(images)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise DataError(f"{type(model).__name__} gives no logits: validate needs a classifier")
    return logits


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if len(labels) and int(labels.min()) < 0:
        raise DataError("images without a label in the dataset: put them in folders, one a class")
    if len(labels) and int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"label {int(labels.max())} in the dataset, but the model has {logits.shape[1]} "
            "classes: give its data, or --class-map"
        )
