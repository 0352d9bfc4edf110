"""Accuracy of a folded model beside the dense one."""

from typing import Any

import pytest
import torch
from support.models import images, registered
from torch.utils.data import DataLoader, TensorDataset

import vitfold
from vitfold.errors import DataError
from vitfold.folding.fold import clone


def labelled(model: torch.nn.Module, count: int = 12) -> TensorDataset:
    """Images with the classes that the dense model gives them, but for every third."""
    torch.manual_seed(1)
    pixels = torch.cat([images(model) for _ in range(count // 2)])[:count]
    with torch.no_grad():
        labels = clone(model)(pixels).argmax(1)
    labels[::3] = (labels[::3] + 1) % 10
    return TensorDataset(pixels, labels)


def test_a_model_is_validated_on_batches_of_a_loader() -> None:
    model = registered("vit_tiny_patch16_224", num_classes=10)
    batches = DataLoader(labelled(model), batch_size=5)
    vitfold.fold(model, "tome", r=1)
    report = vitfold.validate(model, batches)
    assert report.images == 12
    assert report.dense_top1 == pytest.approx(8 / 12)
    assert report.top1_low <= report.top1 <= report.top1_high
    assert vitfold.validate(vitfold.unfold(model), batches).agreement == 1


def test_it_may_be_compared_with_another_model() -> None:
    model = registered("vit_tiny_patch16_224", num_classes=10)
    data = labelled(model)
    torch.manual_seed(5)
    other = registered("vit_tiny_patch16_224", num_classes=10)
    torch.nn.init.normal_(other.head.weight)
    report = vitfold.validate(model, [data[:]], dense=other)
    assert report.top1 == pytest.approx(8 / 12)
    with torch.inference_mode():
        same = other(data.tensors[0]).argmax(1) == model(data.tensors[0]).argmax(1)
    assert report.agreement == pytest.approx(same.double().mean().item())


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        vitfold.validate(registered("vit_tiny_patch16_224"), [])


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (
            [(torch.zeros(2, 3, 28, 28), torch.tensor([1]))],
            r"labels \[1\] of torch.int64: expected",
        ),
        ([(torch.zeros(1, 3, 28, 28), torch.tensor([1.5]))], r"labels \[1\] of torch.float32"),
        ([(torch.zeros(1, 3, 28, 28), [1])], r"labels list: expected images"),
        (torch.zeros(2, 3, 28, 28), "batches came as a Tensor: give pairs"),
        (None, "batches came as a NoneType: give pairs"),
    ],
)
def test_what_are_no_labelled_batches_is_refused(batches: Any, words: str) -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224"), vitfold.ToMe(r=2))
    with pytest.raises(DataError, match=words):
        vitfold.validate(model, batches)
