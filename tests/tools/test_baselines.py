"""What a fold is measured beside: textbook ToMe and free slicing."""

import pytest
import torch
from support.models import images, registered

import vitfold
from vitfold.tools.baselines import BOUND, DENSE, FOLDED, TEXTBOOK, candidates
from vitfold.tools.measure import flops
from vitfold.tools.removal import removed


def folded(name: str = "vit_tiny_patch16_224", depth: int = 3) -> torch.nn.Module:
    return vitfold.fold(registered(name, depth=depth), vitfold.ToMe(r=5))


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"],
)
def test_candidates_share_weights_and_counts(name: str) -> None:
    ours = folded(name)
    models = candidates(ours)
    assert removed(ours) == (5, 5, 5)
    assert {DENSE, BOUND, FOLDED} <= set(models)
    weights = {id(next(model.parameters())) for model in models.values()}
    assert len(weights) == 1
    pixels = images(ours, 2)
    assert flops(models[BOUND], pixels) < flops(ours, pixels) < flops(models[DENSE], pixels)


def test_textbook_computes_the_same() -> None:
    models = candidates(folded())
    pixels = images(models[DENSE])
    with torch.no_grad():
        ours, textbook = models[FOLDED](pixels), models[TEXTBOOK](pixels)
    torch.testing.assert_close(ours, textbook, atol=1e-4, rtol=1e-4)
