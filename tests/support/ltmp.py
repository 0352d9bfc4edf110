"""Models with LTMP's thresholds, and images that keep numbers of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfold
from support.small import MODELS, images
from vitfold import LTMP
from vitfold.folding.calls import fold_of

MERGE, PRUNE = 0.35, 0.016

VARIANTS: dict[str, LTMP] = {
    "both": LTMP(merge_threshold=MERGE, prune_threshold=PRUNE),
    "merge": LTMP(prune=False, merge_threshold=0.6),
    "prune": LTMP(merge=False, prune_threshold=PRUNE),
    "prune first": LTMP(order="prune_first", merge_threshold=MERGE, prune_threshold=PRUNE),
    "other cue": LTMP(cue="x", merge_threshold=0.75, prune_threshold=PRUNE, proportional=False),
}

each_model = pytest.mark.parametrize("name", MODELS)
each_variant = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)


def exactly(a: Tensor, b: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """Thresholds of their own for every block, around those that they start from."""
    generator = torch.Generator().manual_seed(seed)
    learned = fold_of(model).learned
    assert learned is not None
    for values in learned.parameters():
        noise = torch.rand(values.shape, generator=generator, dtype=torch.float64) - 0.5
        values.data.copy_(values.double() * (1 + 0.2 * noise))
    # The first block looks at scores in vain, the second does not look at them.
    for act, first, second in (("merge", 1.0, None), ("prune", 1e-12, 0.0)):
        if (levels := getattr(learned, act)) is not None and len(levels) > 2:
            levels.data[0] = first
            levels.data[1] = levels[1] if second is None else second
    return model


def create(name: str, method: LTMP, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return scattered(vitfold.fold(MODELS[name](**options).to(dtype), method))


def mixed_images(model: Any, batch: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of several contrasts, so that counts differ."""
    x = images(model, batch, dtype=dtype)
    return x * torch.linspace(0.2, 1.5, batch, dtype=dtype)[:, None, None, None]
