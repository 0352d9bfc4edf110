"""Predictions on labelled images, and how they are scored."""

import pytest
import torch
from support.labelled import labelled
from support.models import registered

from vitfold.tools.intervals import interval
from vitfold.tools.validate import Predictions, predict, score


def test_predictions_are_counted_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    ours = Predictions(labels, torch.tensor([[0, 1], [0, 1], [2, 0], [0, 1]]))
    dense = Predictions(labels, torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1]]))
    result = score(ours, dense)
    assert (result.top1, result.top5, result.dense_top1, result.agreement) == (0.5, 0.75, 0.5, 0.5)


def test_predict_says_what_the_model_says() -> None:
    model = registered("vit_tiny_patch16_224", depth=2).eval()
    batches = labelled(model)
    result = predict(model, batches)
    with torch.no_grad():
        expected = torch.cat([model(pixels).argmax(1) for pixels, _ in batches])
    assert torch.equal(result.best[:, 0], expected)


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (5, 10), (10, 10), (970, 1000)])
def test_the_interval_holds_the_share(hits: int, images: int) -> None:
    low, high = interval(hits, images)
    assert 0 <= low <= hits / images <= high <= 1


def test_the_interval_is_wilsons() -> None:
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
