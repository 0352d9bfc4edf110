"""accelerate's hooks over a folded model: weights that lie elsewhere until they are used."""

from typing import Any

import pytest
import torch
from support.models import images, registered

import vitfold
from vitfold.errors import FoldError, UnsupportedModel

accelerate = pytest.importorskip("accelerate")

METHODS = [
    vitfold.ToMe(r=4),
    vitfold.EViT(r=[0, 4], blocks=(1,)),
    vitfold.DynamicViT(r=[0, 4], blocks=(1,)),
    vitfold.LTMP(merge_threshold=0.3),
    vitfold.AViT(),
]


def offload(model: Any) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def vit() -> Any:
    return registered("vit_tiny_patch16_224", depth=3)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_folded_model_is_offloaded(method: Any) -> None:
    model = vitfold.fold(vit(), method)
    x = images(model)
    expected = model(x)
    offload(model)
    assert all(weight.is_meta for weight in model.parameters())
    assert torch.equal(model(x), expected)
    assert torch.equal(model(x), expected)
    assert all(weight.is_meta for weight in model.parameters())


def test_the_order_is_told_and_works() -> None:
    model = vit()
    x = images(model)
    dense = model(x)
    offload(model)
    with pytest.raises(UnsupportedModel, match="remove_hook_from_module"):
        vitfold.fold(model, "tome", r=4)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    model = vitfold.fold(vit(), "tome", r=4)
    offload(model)
    with pytest.raises(FoldError, match="put back what was there, then unfold"):
        vitfold.unfold(model)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(vitfold.unfold(model)(x), dense)
