"""Counting from numbers alone: what is not computed is counted all the same."""

import pytest
import torch
from support import small

import vitfold
from vitfold.folding.calls import fold_of
from vitfold.folding.flops import cost, cost_by_number, count_by_number
from vitfold.methods import ready
from vitfold.tools.by_block import flops_by_block

MODELS = {"vit": small.vit, "deit": small.deit, "dino": small.dino, "eva": small.eva}


@pytest.mark.parametrize("method", ready())
@pytest.mark.parametrize("model", MODELS)
def test_a_fold_costs_what_it_costs_when_it_is_computed(model: str, method: str) -> None:
    folded = vitfold.fold(MODELS[model]().float(), method, flops=0.75)
    family = fold_of(folded).family
    by_number = count_by_number(lambda: 0, lambda: family.trunk(**family.example()))
    assert by_number is not None
    assert by_number[0] == cost_by_number(family) == cost(family)


def test_large_products_are_not_computed() -> None:
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    results = []
    totals = count_by_number(lambda: 7, lambda: results.append(left @ right))
    assert totals == {7: 2 * 3 * 4 * 5}
    assert torch.equal(results[0], torch.zeros(3, 5))


def test_a_model_that_looks_at_values_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = vitfold.fold(small.vit().float(), "tome", r=4)
    family = fold_of(folded).family
    head = torch.nn.Linear.forward

    def looks(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        y = head(self, x)
        if not y.any():
            raise ValueError("nothing to see")
        return y

    monkeypatch.setattr(torch.nn.Linear, "forward", looks)
    assert count_by_number(lambda: 0, lambda: family.trunk(**family.example())) is None
    assert cost_by_number(family) == cost(family) > 0


def test_inference_mode_counts_as_much() -> None:
    folded = vitfold.fold(small.vit().float(), "tome", r=4)
    family = fold_of(folded).family
    with torch.inference_mode():
        assert cost_by_number(family) == cost(family)
    with torch.inference_mode():
        inside = vitfold.fold(small.vit().float(), "tome", flops=0.6)
    outside = vitfold.fold(small.vit().float(), "tome", flops=0.6)
    assert vitfold.folded(inside) == vitfold.folded(outside)


def test_blocks_cost_what_they_cost_when_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folded = vitfold.fold(small.vit().float(), "lgtm", flops=0.75)
    images = torch.randn(2, 3, 28, 28)
    by_number = flops_by_block(folded, images)
    monkeypatch.setattr("vitfold.tools.by_block.count_by_number", lambda *_: None)
    assert by_number == flops_by_block(folded, images)
