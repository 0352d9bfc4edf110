"""Where tokens leave: schedules of one cost, and which of them is kept."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.small import images, vit
from torch import Tensor, nn

import vitfold
from vitfold import DFE, LGTM, Drop, Method, MethodError, ToMe, ToMeAround, Ward
from vitfold.methods.schedule import whole
from vitfold.tokens.layout import Layout
from vitfold.tools.calibrate import passes
from vitfold.tools.fidelity import compared, losses
from vitfold.tools.looks import look
from vitfold.tools.placing import ALL, Placed, Search, Weights, possible, ramped


def some(model: nn.Module, count: int = 12) -> Tensor:
    return images(model, count, 0, torch.float32)


def share(model: nn.Module, x: Tensor) -> float:
    method = vitfold.folded(model)
    cost = vitfold.flops(model, x[:1])
    dense = vitfold.flops(vitfold.unfold(model), x[:1])
    assert method is not None
    vitfold.fold(model, method.method)
    return cost / dense


def loss(model: nn.Module, x: Tensor) -> float:
    """The mean root of the divergence, worked out anew."""
    with torch.no_grad():
        ours = model(x).double().log_softmax(1)
    method = vitfold.folded(model)
    assert method is not None
    with torch.no_grad():
        dense = vitfold.unfold(model)(x).double().log_softmax(1)
    vitfold.fold(model, method.method)
    gap = F.kl_div(ours, dense, reduction="none", log_target=True).sum(1)
    return float(gap.clamp(min=0).sqrt().mean())


@pytest.mark.parametrize(
    "method",
    [
        Ward(flops=0.6),
        DFE(flops=0.75),
        LGTM(flops=0.75),
        Drop(flops=0.6),
        ToMeAround(flops=0.9),
        Ward(flops=0.7, proportional=False, skip=1),
    ],
    ids=str,
)
def test_the_share_is_reached_and_no_more_is_lost_than_by_an_even_schedule(method: Method) -> None:
    model = vit(depth=4)
    x = some(model)
    even = loss(vitfold.fold(model, replace(method, inflection=0.0)), x)
    steps: list[int] = []
    vitfold.fold(model, method)
    assert vitfold.calibrate(model, x, progress=lambda: steps.append(1)) is model
    assert 1 <= len(steps) <= passes(method, 4)
    record = vitfold.folded(model)
    assert record is not None
    assert isinstance(record.method, type(method))
    assert record.method.r == list(record.schedule)
    assert record.method.flops is None
    assert share(model, x) == pytest.approx(method.flops, abs=0.0125)
    if not isinstance(method, DFE | LGTM):  # whose default begins later
        assert loss(model, x) <= even + 1e-6


def test_the_same_images_give_the_same_numbers() -> None:
    x = some(vit(depth=3))
    first, second = (
        vitfold.folded(vitfold.calibrate(vitfold.fold(vit(depth=3), Ward(flops=0.7)), part))
        for part in (x, [(x[:5], torch.zeros(5)), x[5:]])
    )
    assert first == second


def test_a_model_in_training_comes_out_as_it_went_in() -> None:
    model = vit(depth=3).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    vitfold.calibrate(vitfold.fold(model, Ward(flops=0.7)), some(model))
    assert model.training
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_what_leaves_the_last_block_costs_a_class_token_nothing() -> None:
    """So a schedule may always have as many leave there as can."""
    model = vit(depth=3)
    x = some(model)
    with torch.no_grad():
        dense = look(model, x)
        ours = look(vitfold.fold(model, Ward(r=[0, 0, 24])), x)
    assert losses(compared(ours, dense)).max() < 1e-3


def test_of_several_cues_the_best_is_kept() -> None:
    model = vit(depth=3)
    x = some(model)
    losses = {}
    for cues in (["x"], ["random"], ["random", "x"]):
        vitfold.calibrate(vitfold.fold(model, ToMe(flops=0.6)), x, cues=cues)
        losses[tuple(cues)] = loss(model, x)
    record = vitfold.folded(model)
    assert record is not None
    assert isinstance(record.method, ToMe)
    assert record.method.cue == min(("x", "random"), key=lambda cue: losses[(cue,)])


def test_embeddings_are_compared_where_there_are_no_classes() -> None:
    model = vit(depth=3, num_classes=0)
    x = some(model)
    vitfold.calibrate(vitfold.fold(model, Ward(flops=0.7)), x)
    assert share(model, x) == pytest.approx(0.7, abs=0.0125)


def test_it_comes_back_as_an_ordinary_plan(tmp_path: Path) -> None:
    model = vit(depth=3)
    x = some(model)
    vitfold.calibrate(vitfold.fold(model, Ward(flops=0.7)), x, cues=("k", "x"))
    vitfold.save(model, tmp_path)
    again = vitfold.load(tmp_path, vit(depth=3))
    assert vitfold.folded(again) == vitfold.folded(model)
    assert torch.equal(again(x), model(x))


def test_errors() -> None:
    model = vit()
    x = some(model)
    vitfold.fold(model, ToMeAround(flops=0.9))
    with pytest.raises(MethodError, match="ToMeAround compares by no cue"):
        vitfold.calibrate(model, x, cues=("k",))
    vitfold.fold(model, Ward(flops=0.7))
    with pytest.raises(MethodError, match="unknown cue 'y'"):
        vitfold.calibrate(model, x, cues=("y",))
    for method in (Ward(r=3), vitfold.EViT(flops=0.8)):
        with pytest.raises(MethodError, match="has nothing to calibrate"):
            vitfold.calibrate(vitfold.fold(model, method), x)
    record = vitfold.folded(model)
    assert record is not None
    assert isinstance(record.method, vitfold.EViT)


# The search, on losses that are known.


@dataclass
class Landscape:
    """Stands in for trials: what is lost follows from weights.

    noise: how differently images have it.
    """

    target: Weights
    noise: float = 0.0
    layout: Layout = field(default_factory=lambda: Layout(50, 1, depth=8, grid=(7, 7)))
    tried: list[Weights] = field(default_factory=list)

    def solve(self, method: Method, weights: Weights, most: float) -> Placed:
        self.tried.append(weights)
        wrong = sum(abs(min(a, 9) - b) for a, b in zip(weights, self.target, strict=True))
        generator = torch.Generator().manual_seed(len(self.tried))
        spread = torch.randn(20, generator=generator, dtype=torch.float64)
        return Placed(method, weights, 0.6, wrong + self.noise * (spread - spread.mean()))


def search(landscape: Landscape) -> Weights:
    one = Search(landscape, Ward(flops=0.6))  # type: ignore[arg-type]
    one.start()
    one.refine()
    return one.best.weights


@pytest.mark.parametrize("dense", [0, 1, 4])
@pytest.mark.parametrize("last", [1.0, 9.0])
def test_dense_blocks_and_a_free_last_one_are_found(dense: int, last: float) -> None:
    weights = search(Landscape((0.0,) * dense + (1.0,) * (7 - dense) + (last,)))
    assert weights == (0.0,) * dense + (1.0,) * (7 - dense) + (ALL if last > 1 else 1.0,)


def test_single_blocks_get_less_or_more() -> None:
    target = (1.0, 0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0)
    assert search(Landscape(target)) == target


def test_what_images_cannot_tell_is_left_alone() -> None:
    """A gain of a half where images differ by far more."""
    target = (1.0, 0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0)
    assert search(Landscape(target, noise=50.0)) == (1.0,) * 8


def test_it_ends_after_so_many() -> None:
    landscape = Landscape((0.0,) * 4 + (0.7,) * 4)
    search(landscape)
    assert len(landscape.tried) <= passes(Ward(flops=0.6), 8)


@given(st.lists(st.floats(0, 90), max_size=14), st.integers(0, 200))
def test_from_no_block_more_leaves_than_half(means: list[float], patches: int) -> None:
    method: Any = Ward(r=0)
    left = patches
    for number in possible(method, whole(means), patches):
        assert 0 <= number <= left // 2
        left -= number


@given(st.integers(0, 5), st.sampled_from([-1.0, -0.5, 0.5, 1.0]))
def test_a_ramp_keeps_dense_blocks_and_the_mean(dense: int, ramp: float) -> None:
    weights = ramped((0.0,) * dense + (1.0,) * 6, ramp)
    assert weights[:dense] == (0.0,) * dense
    assert sum(weights) == pytest.approx(6)
    assert weights[dense] == pytest.approx(1 - ramp)
