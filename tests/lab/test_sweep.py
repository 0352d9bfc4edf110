"""Many candidates on the same images."""

import copy
from typing import Any

import pytest
import timm
import torch
from support.labelled import labelled, swept
from support.models import images, registered
from torch import nn

import vitfold
from vitfold.data import Renormalized
from vitfold.lab import timing
from vitfold.lab.candidate import (
    candidates,
    gigaflops,
    smaller_images,
    smaller_models,
    trained,
)
from vitfold.lab.sweep import sweep
from vitfold.lab.timing import busy
from vitfold.tools.baselines import BOUND, DENSE, FOLDED
from vitfold.tools.looks import look
from vitfold.tools.measure import Throughput


def test_rows_hold_what_each_candidate_comes_to() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    rows = swept(model, candidates(model, ["tome", "drop"], [0.8, 0.7]))
    assert [row.method for row in rows] == ["dense", "tome", "tome", "drop", "drop"]
    dense = rows[0]
    assert dense.report.agreement == 1.0
    assert dense.changed == []
    assert dense.counts == [26, 26, 26]
    for row in rows[1:]:
        assert row.gflops / dense.gflops == pytest.approx(row.flops, abs=0.03)
        assert row.counts[-1] < 26
        assert len(row.changed) == round(6 * (1 - row.report.agreement))
        [speed] = row.speeds
        assert speed.share is not None
        assert {"share_b2", "speedup_b2", "top1_low", "changed"} <= set(row.to_json())


@pytest.mark.parametrize("labels", [True, False])
def test_rows_hold_how_near_each_candidate_stays(labels: bool) -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    batches = labelled(model, 5)
    some = batches if labels else [pixels for pixels, _ in batches]
    _, row = swept(model, candidates(model, ["tome"], [0.7]), some)
    alone = vitfold.fidelity(vitfold.fold(copy.deepcopy(model), vitfold.ToMe(flops=0.7)), batches)
    assert row.fidelity == alone
    flat = row.to_json()
    assert flat["images"] == 15
    assert flat["cosine_low"] < flat["cosine"] < 1
    assert {"cosine_worst", "recall1", "recall10_low", "kl_high", "agreement"} <= set(flat)
    assert ("top1" in flat) == ("dense_top1" in flat) == labels
    assert len(row.changed) == round(15 * (1 - flat["agreement"]))


def test_dense_answers_are_computed_once() -> None:
    model = registered("vit_tiny_patch16_224", depth=2)
    calls: list[nn.Module] = []
    some = [pixels for pixels, _ in labelled(model)]

    class Batches(list[Any]):
        def __iter__(self) -> Any:
            calls.append(model)
            return super().__iter__()

    rows = swept(model, candidates(model, ["drop"], [0.8, 0.7]), Batches(some))
    assert len(calls) == len(rows) == 3


def test_embedding_models_and_others_beside_them_are_compared() -> None:
    """Where embeddings are of another width, by their neighbours alone."""
    model = registered("vit_tiny_patch16_224", num_classes=0, depth=2)
    wide = registered("vit_tiny_patch16_224", num_classes=0, depth=1, embed_dim=96, num_heads=3)
    some = [pixels for pixels, _ in labelled(model, 5)]
    entries = [
        *candidates(model, ["tome"], [0.8]),
        *smaller_images(model, [0.6]),
        *smaller_models({"wide": lambda: wide}),
    ]
    dense, tome, small, other = swept(model, entries, some)
    assert [row.report for row in (dense, tome, small, other)] == [None] * 4
    assert dense.fidelity.cosine.mean == pytest.approx(1)
    for row in (tome, small):
        assert -1 < row.fidelity.cosine.mean < 1
        assert row.fidelity.agreement is None
        assert row.changed == []
    assert other.fidelity.cosine is None
    assert 0 <= other.fidelity.recall10.mean <= 1


def test_a_classifier_on_smaller_images_is_seen_as_one() -> None:
    model = registered("vit_tiny_patch16_224", depth=2, num_classes=4)
    some = [pixels for pixels, _ in labelled(model, 2)]
    ours = smaller_images(model, [0.6])[0].make()
    for each in (ours, Renormalized(model, ([0.5], [0.5]), ([0.4], [0.4]))):
        with torch.inference_mode():
            answer = look(each, some[0])
        assert answer.logits is not None
        assert answer.logits.shape == (3, 4)
        assert answer.embedding is not None
        assert answer.embedding.shape == (3, model.embed_dim)


def test_of_dense_models_places_are_compared() -> None:
    backbone = timm.create_model("test_vit", features_only=True).eval()
    some = list(torch.randn(4, 3, 160, 160).split(2))
    dense, tome = swept(backbone, candidates(backbone, ["tome"], [0.8]), some)
    assert dense.fidelity.dense_cosine.mean == pytest.approx(1)
    assert 0 < tome.fidelity.dense_cosine.mean < 1
    assert tome.fidelity.cosine is None


def test_a_share_out_of_reach_is_skipped_in_words() -> None:
    model = registered("vit_tiny_patch16_224", depth=2)
    skipped: list[str] = []
    rows = swept(model, candidates(model, ["dfe"], [0.05, 0.9]), skip=skipped.append)
    assert [row.flops for row in rows] == [1.0, 0.9]
    assert "dfe at 0.05" in skipped[0]


def test_costs_that_depend_on_images_are_those_of_all_of_them() -> None:
    """Folders list one class after another."""
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=3), vitfold.WardCut(flops=0.7))
    x = images(model, 96)
    x[:48] *= 0.01  # one colour, in which all tokens merge
    vitfold.calibrate(model, x)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(40)]
    [(row, _)] = sweep(
        vitfold.unfold(copy.deepcopy(model)), trained({"cut": model}), lambda: batches,
        sizes=(2,), repeats=1,
    )  # fmt: skip
    dense = gigaflops(vitfold.unfold(copy.deepcopy(model)), x[:2])
    assert row.gflops / dense == pytest.approx(0.7, abs=0.05)


def test_rows_say_what_a_fold_really_costs() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    entries = candidates(model, ["tome"], [0.8])
    ours = vitfold.fold(copy.deepcopy(model), vitfold.LTMP(flops=0.6))  # not trained to it
    dense, tome, ltmp = swept(model, [*entries, *trained({"untrained": ours})])
    assert dense.flops_share == 1
    assert tome.flops_share == pytest.approx(0.8, abs=0.03)
    assert ltmp.flops == 0.6
    assert ltmp.flops_share == ltmp.gflops / dense.gflops
    assert abs(ltmp.flops_share - 0.6) > 0.1
    assert ltmp.to_json()["flops_share"] == ltmp.flops_share


class Machine:
    """Stands in for `compare`: a machine whose shares of the bound are these, one at a time."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)

    def __call__(self, named: Any, *_: Any, **__: Any) -> dict[str, Throughput]:
        share = self.shares.pop(0) if FOLDED in named else 1.0
        rates = {DENSE: 60.0, BOUND: 100.0, FOLDED: 100.0 * share}
        return {name: Throughput(rates[name], rates[name], rates[name], 1) for name in named}


@pytest.mark.parametrize(
    ("measured", "share", "steady"),
    [([0.95], 0.95, True), ([1.45, 0.93], 0.93, True), ([1.45, 1.3, 1.2], 1.2, False)],
)
def test_what_is_faster_than_the_bound_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, measured: list[float], share: float, steady: bool
) -> None:
    machine = Machine(*measured)
    monkeypatch.setattr(timing, "compare", machine)
    model = registered("vit_tiny_patch16_224", depth=2)
    dense, row = swept(model, candidates(model, ["tome"], [0.8]))
    [speed] = row.speeds
    assert machine.shares == []
    assert (speed.share, speed.steady) == (pytest.approx(share), steady)
    assert row.to_json()["steady_b2"] == steady
    warning = busy({"dense": dense.speeds, "tome 0.80": row.speeds})
    assert (warning is None) == steady
    assert steady or "tome 0.80" in str(warning)
