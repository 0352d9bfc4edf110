"""Recipes: their defaults, what methods want, what users lay over them, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import vitfold_
from support.training import Blobs, learned, learner, options, small, training

import vitfold
from vitfold.errors import TrainError
from vitfold.methods import METHODS
from vitfold.methods.recipe import MethodRecipe
from vitfold.train import Distillation, Recipe

OVERRIDES: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs=0"),
    ({"batch_size": True}, "batch_size=True"),
    ({"clip": -1.0}, "clip=-1.0"),
    ({"sam": 0}, "sam=0"),
    ({"smoothing": 1.0}, "smoothing=1.0"),
    ({"mix": {"mixup_alpha": 1.0}, "batch_size": 3}, "batch_size=3: mixing takes an even one"),
    ({"seed": 10**20}, "seed=100000000000000000000: expected at most"),
    ({"seed": -1}, "seed=-1"),
]


@pytest.mark.parametrize(("options", "message"), OVERRIDES)
def test_recipes_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Recipe(**options)


def test_any_model_is_trained_by_the_defaults() -> None:
    assert Recipe.for_model(small()) == Recipe()
    assert Recipe.for_model(vitfold.fold(small(), "tome", r=2)) == Recipe()


def test_thresholds_are_trained_alone_and_for_one_epoch() -> None:
    recipe = Recipe.for_model(learner())
    assert recipe == dataclasses.replace(
        Recipe(),
        epochs=1,
        smoothing=0.1,
        optimizer={"opt": "momentum", "weight_decay": 0.0},
        rates={"merge": 5e-3, "prune": 5e-6},
        freeze="model",
    )
    assert Recipe.for_model(learner(prune=False)).rates == {"merge": 5e-3}


def test_a_rate_for_the_model_trains_it_too() -> None:
    recipe = Recipe.for_model(learner(), optimizer={"lr": 1e-4})
    assert recipe.freeze == "none"
    assert recipe.optimizer == {"opt": "momentum", "lr": 1e-4, "weight_decay": 0.0}
    kept = Recipe.for_model(learner(), optimizer={"lr": 1e-4}, freeze="method")
    assert (kept.freeze, kept.rates) == ("method", {})


def test_what_is_chosen_is_laid_over_what_a_method_wants() -> None:
    method = MethodRecipe(epochs=30, optimizer={"lr": 1e-4}, temperature=20.0)
    recipe = Recipe.for_method(
        method, epochs=2, optimizer={"lr": 1.0, "momentum": 0.5}, distill={"alpha": 0.5}
    )
    assert recipe.epochs == 2
    assert recipe.optimizer == {"opt": "adamw", "lr": 1.0, "weight_decay": 0.05, "momentum": 0.5}
    assert recipe.distill == Distillation("soft", 0.5, 20.0)
    assert Recipe.for_method(method).distill is None
    assert Recipe.for_method(method, distill=Distillation()).distill == Distillation()
    assert Recipe.for_method(MethodRecipe(), distill={}).distill == Distillation()
    with pytest.raises(TrainError, match=r"a recipe has no 'epoch'.*epochs"):
        Recipe.for_model(small(), epoch=2)


def test_methods_say_what_timm_and_recipes_know() -> None:
    """No method knows an option of the command line."""
    for kind in METHODS.values():
        assert set(kind.training.optimizer) <= {"opt", *Recipe().optimizer}
        assert kind.training.freeze in (None, "model")


@pytest.mark.parametrize(
    "more", [[], ["--method", "ltmp", "--flops", "0.93"], ["--method", "tome", "--r", "2"]], ids=str
)
def test_the_command_trains_by_the_same_recipe(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, more: list[str]
) -> None:
    request = options(folder, tmp_path / "out")
    place = request.index("--epochs")
    request[place : place + 2] = ["--epochs", "1"]
    assert vitfold_(monkeypatch, *request, *more) == 0
    model = learner(flops=0.93) if "ltmp" in more else small()
    recipe = Recipe.for_model(model, epochs=1, batch_size=4)
    written = json.loads((tmp_path / "out" / "recipe.json").read_text())["recipe"]
    assert written == json.loads(json.dumps(recipe.to_json()))


def test_in_python_thresholds_are_trained_as_on_the_command_line(tmp_path: Path) -> None:
    model = learner()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    recipe = Recipe.for_model(model, batch_size=4, rates={"merge": 0.05})
    outcome = training(model, recipe, Blobs(), tmp_path)
    after = model.state_dict()
    for name, values in after.items():
        assert torch.equal(values, before[name]) == (name not in learned(after)), name
    assert [row["step"] for row in outcome.steps] == list(range(1, 7))  # it logs every step
    assert outcome.target == 0.7


def test_defaults_are_shown_in_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    monkeypatch.setenv("COLUMNS", "400")
    assert vitfold_(monkeypatch, "train", "--help") == 0
    shown = capsys.readouterr().out
    usual = Recipe()
    for default in (
        f"[default: ({usual.epochs}; ltmp: 1; prune-merge: 30)]",
        f"[default: ({usual.optimizer['lr']:g}; ltmp: none; prune-merge: 0.0001)]",
        f"[default: ({usual.optimizer['weight_decay']:g}; ltmp: 0)]",
        f"[default: ({usual.smoothing:g}; ltmp: 0.1)]",
        "[default: (ltmp: 0.005)]",
        "[default: (3; prune-merge: 20)]",
        "[default: (50; ltmp: 1)]",
        f"[default: {usual.batch_size}]",
        f"[default: {usual.seed}]",
        f"[default: {usual.schedule['sched']}]",
        f"[default: {usual.augment['hflip']}]",
    ):
        assert default in shown, default
