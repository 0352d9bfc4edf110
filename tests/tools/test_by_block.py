"""What every block costs."""

import pytest
import torch
from support import small

from vitfold import flops, fold
from vitfold.errors import FoldError
from vitfold.folding.fold import clone
from vitfold.tools.by_block import flops_by_block


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("method", ["tome", "ward", "drop", "evit"])
def test_what_folding_saves_is_saved_in_blocks(kind: str, method: str) -> None:
    model = small.MODELS[kind]().float()
    images = small.images(model, 1, dtype=torch.float32)
    dense = flops_by_block(fold(clone(model), "tome", r=0), images)
    folded = fold(clone(model), method, flops=0.6)
    blocks = flops_by_block(folded, images)
    assert len(blocks) == len(dense) == 4
    assert len(set(dense)) == 1
    # A norm before the head, and what pools, may see fewer tokens: their products are none.
    assert sum(dense) - sum(blocks) == flops(model, images) - flops(folded, images)
    assert blocks[-1] < blocks[0]


def test_a_model_that_is_not_folded_is_refused() -> None:
    model = small.vit().float()
    with pytest.raises(FoldError):
        flops_by_block(model, small.images(model, 1, dtype=torch.float32))
