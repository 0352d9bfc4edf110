"""What methods learn: thresholds are trained, bounded and logged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import (
    LEARN,
    LEARN_MERGING,
    STEPS,
    Blobs,
    learned,
    learner,
    run,
    small,
    training,
)
from torch import Tensor, nn

import vitfold
from vitfold.errors import MethodError, TrainError
from vitfold.train import Recipe


def test_thresholds_are_learned_and_nothing_else(tmp_path: Path) -> None:
    model = learner()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    after = run(tmp_path, LEARN, model)
    assert all(values.requires_grad for values in model.parameters())
    for name, values in after.items():
        assert torch.equal(values, before[name]) == (name not in learned(after)), name
    for values in learned(after).values():
        assert 0 <= values.min() <= values.max() <= 1


def test_a_third_rate_trains_the_weights_too(tmp_path: Path) -> None:
    optimizer = {"opt": "momentum", "lr": 1e-2, "weight_decay": 0.05}
    model = learner()
    before = model.head.weight.clone()
    run(tmp_path, Recipe(**{**vars(LEARN), "freeze": "none", "optimizer": optimizer}), model)
    assert not torch.equal(model.head.weight, before)
    assert (model.vitfold.merge != 0.9).any()


def test_every_step_tells_of_thresholds(tmp_path: Path) -> None:
    run(tmp_path, LEARN, learner(), log_every=1)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    assert len(steps) == STEPS
    for event in steps:
        assert event["share_asked"] == 0.7
        assert 0 < event["share"] <= 1
        assert 0 <= event["top1"] <= 1
        assert [len(event[n]) for n in ("merge_threshold", "prune_threshold", "tokens")] == [2] * 3


def test_an_optimizer_step_that_leaves_the_bounds_is_brought_back(tmp_path: Path) -> None:
    rates = {"merge": 1e3, "prune": 1e3}
    weights = run(tmp_path, Recipe(**{**vars(LEARN), "rates": rates}), learner())
    for values in learned(weights).values():
        assert 0 <= values.min() <= values.max() <= 1


def test_mistakes_about_what_is_learned(tmp_path: Path) -> None:
    def begin(recipe: Recipe, model: nn.Module, **options: Any) -> None:
        run(tmp_path, recipe, model, resume=False, **options)

    with pytest.raises(TrainError, match="lr_prune: the method learns no such thing"):
        begin(LEARN, learner(prune=False))
    with pytest.raises(TrainError, match="lr_merge: the method learns no such thing"):
        begin(LEARN_MERGING, vitfold.fold(small(), "tome", r=2))
    with pytest.raises(TrainError, match="nothing is trained"):
        begin(Recipe(freeze="model", batch_size=4), small())
    with pytest.raises(TrainError, match="do not compile"):
        begin(LEARN, learner(), compiled=True)
    with pytest.raises(MethodError, match="give flops"):
        begin(LEARN, learner(flops=None))


def test_learned_thresholds_that_are_lost_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Broken(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return image * (float("nan") if index == 5 else 1), label

    with pytest.raises(TrainError, match="the loss is nan at step"):
        training(learner(), LEARN, Broken(), tmp_path, every=1, log_every=1)
