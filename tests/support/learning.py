"""Models with DynamicViT and A-ViT, and what both have to obey."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfold
from support.small import MODELS, images
from vitfold import AViT, DynamicViT

each_model = pytest.mark.parametrize("name", MODELS)
each_reader = pytest.mark.parametrize("name", [name for name in MODELS if name != "eva"])
"""Models that read out class tokens."""

PREDICTED = DynamicViT(r=[0, 8, 0, 6], blocks=(1, 3))


def mixed(model: Any, batch: int = 4) -> Tensor:
    """Images of several contrasts, so that counts differ."""
    dtype = next(model.parameters()).dtype
    levels = torch.linspace(0.2, 1.5, batch, dtype=dtype)
    return images(model, batch, dtype=dtype) * levels[:, None, None, None]


def create(name: str, method: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(0)
    return vitfold.fold(MODELS[name](**options).to(dtype), method)


def halting(name: str = "vit", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Tokens halt from the second block on."""
    return create(name, AViT(gamma=1.0, beta=-1.0, **options), dtype)


def close(ours: Tensor, wanted: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)


def same_decisions(model: Any, x: Tensor) -> None:
    """Masked as in training, removed, and each image alone."""
    logits, features, trace = model(x), model.forward_features(x), vitfold.trace(model, x)
    with vitfold.masked():
        close(model(x), logits)
        close(model.forward_features(x), features)
        kept = vitfold.trace(model, x)
    assert kept.counts == trace.counts
    for ours, theirs in zip(kept.maps, trace.maps, strict=True):
        assert torch.equal(ours.slot, theirs.slot)
    close(torch.cat([model(image[None]) for image in x]), logits)
    close(model(x.flip(0)), logits.flip(0))


def without(**options: Any) -> nn.Module:
    return MODELS["vit"](class_token=False, global_pool="avg", **options)


def registers() -> nn.Module:
    return MODELS["vit"](class_token=False, global_pool="avg", reg_tokens=4)


KINDS = {"dynamicvit": PREDICTED, "avit": AViT(gamma=1.0, beta=-1.0, flops=0.8)}
