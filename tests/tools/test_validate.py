"""Accuracy of a folded model beside the dense one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models import images, registered
from torch.utils.data import DataLoader, TensorDataset

import vitfold
from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.tools import validate as validating


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


def test_fidelity_is_of_the_same_calls() -> None:
    """Every batch goes once through each model, and the figures are those of `fidelity`."""
    model = vitfold.fold(registered("vit_tiny_patch16_224", num_classes=10), "tome", r=2)
    dense = clone(model)
    batches = list(DataLoader(labelled(model), batch_size=5))
    alone = vitfold.fidelity(model, batches, dense=dense)
    calls: list[str] = []
    for name, each in (("folded", model), ("dense", dense)):
        each.register_forward_hook(lambda *_, name=name: calls.append(name))
    report = vitfold.validate(model, batches, dense=dense)
    assert calls == ["folded", "dense"] * 3
    assert report.fidelity == alone
    row = report.to_json()
    assert (row["top1"], row["agreement"]) == (report.top1, report.agreement)
    assert alone.cosine is not None
    assert row["cosine"] == alone.cosine.mean < 1
    assert row["agreement_low"] <= row["agreement"] <= row["agreement_high"]


def test_speed_is_that_of_the_folded_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of looking at what it says, nor of the dense model."""
    model = vitfold.fold(registered("vit_tiny_patch16_224", num_classes=10), "tome", r=2)
    clock = [0.0]
    dense = clone(model)
    for seconds, each in ((2.0, model), (5.0, dense)):
        each.register_forward_hook(lambda *_, seconds=seconds: clock.append(clock.pop() + seconds))
    slow = validating.look_of

    def look_of(*arguments: Any) -> Any:
        clock.append(clock.pop() + 100)
        return slow(*arguments)

    monkeypatch.setattr(validating, "look_of", look_of)
    monkeypatch.setattr(validating, "now", lambda _: clock[0])
    report = vitfold.validate(model, DataLoader(labelled(model), batch_size=4), dense=dense)
    assert report.images_per_second == 12 / 6


def test_an_output_of_ones_own_needs_logits_alone() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = registered("vit_tiny_patch16_224", num_classes=10)

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(x))

    model = Wrapped()
    report = vitfold.validate(model, [labelled(model.inner)[:]], dense=model.inner)
    assert report.agreement == 1


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
