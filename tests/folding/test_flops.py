"""Counting from numbers alone: what is not computed is counted all the same."""

import pytest
import torch
from support import small

import vitfold
from vitfold.errors import MethodError
from vitfold.folding import schedules
from vitfold.folding.calls import fold_of
from vitfold.folding.flops import cost, cost_by_number, count_by_number
from vitfold.folding.fold import clone
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


def schedules_of(model: torch.nn.Module, method: str, shares: list[float]) -> list[object]:
    """The numbers of tokens for every share, or why it cannot be reached."""
    results: list[object] = []
    for share in shares:
        try:
            record = fold_of(vitfold.fold(clone(model), method, flops=share))
            results.append(record.schedule)
        except MethodError as error:
            results.append(str(error))
    return results


@pytest.mark.parametrize("method", ["lgtm", "tome", "ward"])
def test_shares_have_the_numbers_that_computing_gives(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_shares(small.deit().float(), method, 11, monkeypatch)


@pytest.mark.exhaustive
def test_shares_of_a_model_of_real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shares(vitfold.create_model("deit_small_patch16_224"), "lgtm", 71, monkeypatch)


def check_shares(
    model: torch.nn.Module, method: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [round(float(share), 4) for share in torch.linspace(0.3, 1.0, many)]
    by_number = schedules_of(model, method, shares)
    assert len({str(numbers) for numbers in by_number}) > many // 3
    monkeypatch.setattr(schedules, "cost_by_number", cost)
    assert by_number == schedules_of(model, method, shares)
