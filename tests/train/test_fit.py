"""Fit to FLOPs after a training."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rest import rest
from support.training import LEARN, LEARN_MERGING, Blobs, learner, run, small, training
from torch import Tensor

import vitfold
from vitfold.data.digits import load_split
from vitfold.errors import TrainError
from vitfold.saving.models import create_model
from vitfold.train import Outcome, Recipe
from vitfold.train.outcome import check_share


def digits(first: int, last: int) -> list[tuple[Tensor, int]]:
    """Some of the embedded model's training images, which are drawn anew from a seed."""
    torch.manual_seed(0)
    images, labels = load_split("train")
    return [(images[index], int(labels[index])) for index in range(first, last)]


@pytest.mark.parametrize("options", [{}, *rest({"prune": False})], ids=str)
def test_the_share_that_was_asked_for_is_that_of_unseen_images(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = vitfold.fold(
        create_model("digits", pretrained=True), vitfold.LTMP(flops=0.7, **options)
    )
    rates = {"merge": 5e-2, "prune": 1e-4}
    rates = {n: rate for n, rate in rates.items() if f"vitfold.{n}" in model.state_dict()}
    recipe = Recipe(**{**vars(LEARN), "epochs": 2, "batch_size": 32, "accumulate": 1,
                       "rates": rates})  # fmt: skip
    outcome = training(model, recipe, digits(0, 64), tmp_path, calibration=digits(0, 64))
    assert outcome.share == pytest.approx(0.7, abs=0.02)
    unseen = torch.stack([image for image, _ in digits(64, 128)])
    model.eval()
    share = vitfold.flops(model, unseen) / vitfold.flops(
        create_model("digits", pretrained=True).eval(), unseen
    )
    assert share == pytest.approx(0.7, abs=0.02)


def test_a_share_out_of_reach_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"flops=0.05 is not reached: .*last costs 0\.\d+ of the"):
        run(tmp_path, LEARN_MERGING, learner(flops=0.05, prune=False), calibration=Blobs())
    assert vitfold.load(tmp_path / "last")


def test_thresholds_that_went_too_far_ask_for_lower_rates(tmp_path: Path) -> None:
    outcome = Outcome([], None, None, target=0.8, share=0.88, share_before=0.2)
    with pytest.raises(TrainError, match=r"went too far, to 0\.200: train at lower rates"):
        check_share(outcome, tmp_path)
    check_share(dataclasses.replace(outcome, share=0.81), tmp_path)


def test_a_method_that_stays_as_it_is_is_not_brought_to_its_share(tmp_path: Path) -> None:
    model = learner(flops=0.3)
    before = {n: v.clone() for n, v in model.state_dict().items() if "vitfold" in n}
    recipe = Recipe(epochs=1, batch_size=4, freeze="method")
    outcome = training(model, recipe, Blobs(), tmp_path, calibration=Blobs())
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())
    assert outcome.share is not None
    assert outcome.share_before is None


def test_heights_that_training_moved_away_from_are_brought_back(tmp_path: Path) -> None:
    model = vitfold.fold(small(), vitfold.WardCut(flops=0.8))
    images = torch.stack([image for image, _ in (Blobs()[index] for index in range(24))])
    vitfold.calibrate(model, images)
    recipe = Recipe(epochs=2, batch_size=4, optimizer={"opt": "adamw", "lr": 3e-3})
    outcome = training(model, recipe, Blobs(), tmp_path, calibration=Blobs())
    assert outcome.share_before is not None
    assert outcome.share == pytest.approx(0.8, abs=0.02)
