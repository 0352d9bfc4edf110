"""Evaluators: how good a model in training is, on held-out images."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from vitfold.errors import DataError
from vitfold.segment.metrics import intersection_over_union, mean_iou, pixels
from vitfold.tools.answers import logits


class Evaluator:
    """Counts on some of the images, which add up over processes, and makes a figure of them.

    figure: the name of the figure; more is better.
    """

    figure: ClassVar[str]

    def count(self, model: nn.Module, batches: Any, device: torch.device) -> Tensor:
        """`[...]` counts on one batch, which add up over batches and processes."""
        raise NotImplementedError

    def value(self, counts: Tensor) -> float:
        """The figure that the summed counts give."""
        raise NotImplementedError

    def batches(self, images: Any, process: int, processes: int, size: int, workers: int) -> Any:
        """The batches of one process."""
        if not len(images):
            raise DataError("no held-out images: the dataset is empty")
        share = Subset(images, range(process, len(images), processes))
        return DataLoader(share, size, num_workers=workers)


class Top1(Evaluator):
    """Top-1 accuracy."""

    figure = "top1"

    def count(self, model: nn.Module, batches: Any, device: torch.device) -> Tensor:
        """How many predictions are right, and how many images there are."""
        counts = torch.zeros(2, device=device)
        for images, labels in batches:
            hits = logits(model, images.to(device)).argmax(1).cpu() == labels
            counts += torch.tensor([float(hits.sum()), len(labels)], device=device)
        return counts

    def value(self, counts: Tensor) -> float:
        """Accuracy, as a share of one."""
        hits, images = counts.tolist()
        return float(hits / images)


class MeanIoU(Evaluator):
    """Mean over classes of the intersection of predicted and labelled pixels over their union.

    stride: of the windows that slide over an image.
    """

    figure = "miou"

    def __init__(self, classes: int, stride: int | None = None) -> None:
        self.stride = stride
        self.meter = intersection_over_union(classes)

    def batches(self, images: Any, process: int, processes: int, size: int, workers: int) -> Any:
        """Image by image: sizes differ."""
        return super().batches(images, process, processes, 1, workers)

    def count(self, model: nn.Module, batches: Any, device: torch.device) -> Tensor:
        """The confusion matrix: pixels by label and prediction."""
        self.meter.reset()
        for images, labels in batches:
            size = (labels.shape[1], labels.shape[2])
            answer = pixels(model, images[0].to(device), size, self.stride)
            self.meter.update(answer.cpu().unsqueeze(0), labels)
        counts: Tensor = self.meter.confmat.to(device)
        return counts

    def value(self, counts: Tensor) -> float:
        """Mean IoU, as a share of one."""
        self.meter.confmat = counts.cpu()
        return mean_iou(self.meter.compute())
