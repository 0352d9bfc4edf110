"""Mean intersection over union and accuracy of a segmenter, folded and dense."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import DataError, UnsupportedModel, missing
from vitfold.segment.segmenter import Segmenter
from vitfold.segment.windows import slide
from vitfold.tokens.modes import evaluating, mixed
from vitfold.tools.answers import IGNORED, check_labels
from vitfold.tools.measure import Progress, now


@dataclass(frozen=True)
class Report:
    """Scores of a folded segmenter beside the dense one, as shares of one.

    miou: the mean, over classes that occur, of the intersection of prediction and truth over
        their union.
    ious: of every class; None of one that does not occur.
    accuracy: of pixels.
    agreement: of pixels, with the dense model.
    """

    images: int
    miou: float
    accuracy: float
    ious: list[float | None]
    dense_miou: float
    agreement: float
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        """The figures by field name."""
        return asdict(self)


def intersection_over_union(classes: int) -> Any:
    """torchmetrics' meter of the IoU of every class; NaN for one that does not occur."""
    try:
        from torchmetrics.classification import MulticlassJaccardIndex
    except ImportError:
        raise missing("torchmetrics", "train") from None
    return MulticlassJaccardIndex(
        classes,
        average="none",
        ignore_index=IGNORED,
        sync_on_compute=False,
        zero_division=math.nan,
    )


def mean_iou(ious: Tensor) -> float:
    """The mean IoU over the classes that occur."""
    if ious.isnan().all():
        raise DataError("no pixel has a class: is --ignore-label right?")
    return float(ious.nanmean())


def pixels(model: nn.Module, image: Tensor, size: tuple[int, int], stride: int | None) -> Tensor:
    """`[H, W]`: the class of every pixel of a picture of that size, from its image `[C, h, w]`."""
    logits = slide(model, image.unsqueeze(0), _window(model), stride)
    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[0].argmax(dim=0)


def _window(model: nn.Module) -> tuple[int, int]:
    """What a segmenter takes, or what a runtime made of one; any other model is refused."""
    window: tuple[int, int] | None = getattr(model, "window", None)
    return as_segmenter(model).window if window is None else window


def as_segmenter(model: nn.Module) -> Segmenter:
    """The model, typed as a segmenter; any other model is refused."""
    if not isinstance(model, Segmenter):
        raise UnsupportedModel(
            f"{type(model).__name__} is no segmenter: train one by vitfold train --task segment"
        )
    return model


def score(
    folded: nn.Module,
    dense: nn.Module,
    scenes: Iterable[tuple[Tensor, Tensor]],
    *,
    stride: int | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Report:
    """Run both over scenes: images `[C, h, w]` as the model takes them, of any size, and labels
    `[H, W]` as they are.

    folded: the model, or what a runtime makes of it.
    """
    classes = as_segmenter(dense).classes
    device = next(dense.parameters()).device
    ours, theirs = (intersection_over_union(classes).to(device) for _ in range(2))
    images = same = right = labelled = total = 0
    seconds = 0.0
    with torch.inference_mode(), evaluating(folded), evaluating(dense), mixed(device, amp):
        for image, labels in scenes:
            check_labels(labels, classes)
            image, labels = image.to(device), labels.to(device)
            size = (labels.shape[0], labels.shape[1])
            start = now(device)
            predicted = pixels(folded, image, size, stride)
            seconds += now(device) - start
            dense_predicted = pixels(dense, image, size, stride)
            for meter, answer in ((ours, predicted), (theirs, dense_predicted)):
                meter.update(answer.unsqueeze(0), labels.unsqueeze(0))
            images, total = images + 1, total + labels.numel()
            labelled += int((labels != IGNORED).sum())
            right += int((predicted == labels).sum())
            same += int((predicted == dense_predicted).sum())
            progress()
    if not images:
        raise DataError("no images: the dataset is empty")
    each = ours.compute()
    return Report(
        images=images,
        miou=mean_iou(each),
        accuracy=right / labelled,
        ious=[None if math.isnan(iou) else iou for iou in each.tolist()],
        dense_miou=mean_iou(theirs.compute()),
        agreement=same / total,
        images_per_second=images / max(seconds, 1e-9),
    )
