"""What a fold has to agree with: the model as it was, and its twin over all tokens."""

from typing import Any

import torch
from torch import Tensor

import vitfold
from support.models import maps, twin


def check_nothing_to_reduce(model: Any, x: Tensor) -> None:
    """With r = 0, and again once it is unfolded, a model computes the same to the last bit."""
    keys, attributes = list(model.state_dict()), set(model.__dict__)
    before = outputs(model, x)
    vitfold.fold(model, vitfold.ToMe(r=0))
    assert list(model.state_dict()) == keys
    same(outputs(model, x), before)
    vitfold.unfold(vitfold.fold(model, vitfold.ToMe(r=3)))
    assert set(model.__dict__) == attributes
    assert not any("forward" in module.__dict__ for module in model.modules())
    same(outputs(model, x), before)


@torch.no_grad()
def outputs(model: Any, x: Tensor) -> list[Tensor]:
    """Everything that a model hands out."""
    result = [model(x), model.forward_features(x), *model.forward_intermediates(x)[1]]
    if hasattr(model, "get_intermediate_layers"):
        result += model.get_intermediate_layers(x, n=2, norm=True)
    assert all(tensor.isfinite().all() for tensor in result)
    return result


def tensors(result: Any) -> list[Tensor]:
    """All that are somewhere in what a model hands out."""
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if hasattr(result, "values") else result
    return [t for part in parts for t in tensors(part)] if isinstance(result, tuple | dict) else []


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def near(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 4e-5) -> None:
    """As near as single precision is on any processor: some round a sum in another order."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= tolerance * other.abs().max()


def check_twin(model: Any, x: Tensor, method: Any, **inputs: Any) -> None:
    with torch.no_grad():
        dense = model(x, **inputs)
    vitfold.fold(model, method)
    with torch.no_grad():
        folded = [model(x, **inputs), model.forward_features(x, **inputs)]
    stages = maps(model, x, **inputs)
    vitfold.unfold(model)
    with torch.no_grad(), twin(model, stages):
        slow = [model(x, **inputs), model.forward_features(x, **inputs)]
    near(folded, slow)
    assert not torch.allclose(folded[0], dense, rtol=1e-3, atol=1e-4), "nothing was merged"
