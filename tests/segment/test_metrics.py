"""Loss, mean intersection over union and accuracy of segmenters."""

import pytest
import torch
import torch.nn.functional as F
from support.segment import segmenter
from torch import Tensor

from vitfold.errors import DataError, UnsupportedModel
from vitfold.segment import Segmenter, score
from vitfold.tools.answers import IGNORED, cross_entropy
from vitfold.train.evaluators import MeanIoU


def test_pixels_without_a_class_count_for_nothing() -> None:
    output = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (2, 4, 5))
    labels[0, 1:3] = IGNORED
    known = labels != IGNORED
    rows = output.permute(0, 2, 3, 1)[known]
    wanted = F.cross_entropy(rows, labels[known], label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(output, labels, 0.1), wanted)
    none = cross_entropy(output, torch.full_like(labels, IGNORED))
    none.backward()
    assert none == 0
    assert output.grad is not None
    assert bool((output.grad == 0).all())


class Fixed(Segmenter):
    """Says of a pixel what its red channel is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x[:, 0].round().long(), self.classes).permute(0, 3, 1, 2).float()


def fixed() -> Fixed:
    return Fixed(segmenter().encoder, 4, "linear")


def test_the_mean_iou_is_that_of_counting() -> None:
    torch.manual_seed(1)
    output = [torch.randint(3, (48, 48)) for _ in range(3)]
    truth = [torch.where(torch.rand(48, 48) < 0.7, x, (x + 1) % 3) for x in output]
    for labels in truth:
        labels[:5] = IGNORED
    images = [x[None].repeat(3, 1, 1).float() for x in output]
    report = score(fixed(), fixed(), zip(images, truth, strict=True))
    ours, real = torch.cat(output), torch.cat(truth)
    ious = []
    for c in range(3):
        a, b = (ours == c) & (real != IGNORED), real == c
        ious.append(((a & b).sum() / (a | b).sum()).item())
    assert report.miou == pytest.approx(sum(ious) / 3, abs=1e-6)  # class 3 never occurs
    assert report.ious[:3] == pytest.approx(ious, abs=1e-6)
    known = real != IGNORED
    assert report.accuracy == pytest.approx((ours == real)[known].float().mean().item())
    assert report.agreement == 1
    evaluator = MeanIoU(4)
    pairs = [(image[None], labels[None]) for image, labels in zip(images, truth, strict=True)]
    parts = [evaluator.count(fixed(), some, torch.device("cpu")) for some in (pairs[:1], pairs[1:])]
    assert evaluator.value(parts[0] + parts[1]) == pytest.approx(report.miou, abs=1e-6)
    assert report.ious[3] is None
    with pytest.raises(DataError, match="no images"):
        score(fixed(), fixed(), [])
    with pytest.raises(DataError, match="no pixel"):
        score(fixed(), fixed(), [(images[0], torch.full((48, 48), IGNORED))])
    with pytest.raises(UnsupportedModel, match="--task segment"):
        score(segmenter().encoder, fixed(), pairs)


def test_pixels_without_a_class_are_no_score() -> None:
    evaluator = MeanIoU(3)
    with pytest.raises(DataError, match="no pixel has a class"):
        evaluator.value(torch.zeros(3, 3))
