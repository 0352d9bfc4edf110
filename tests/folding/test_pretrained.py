"""What save_pretrained says of a folded model."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models

import vitfold


def saved(model: Any, directory: Path) -> list[str]:
    """The warnings while a model saves itself."""
    with warnings.catch_warnings(record=True) as output:
        warnings.simplefilter("always")
        model.save_pretrained(directory)
    return [str(warning.message) for warning in output if "vitfold" in str(warning.message)]


def test_a_folded_model_says_that_it_is_saved_dense(tmp_path: Path) -> None:
    model = vitfold.fold(models.hf("ViTForImageClassification"), "tome", r=2)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.vit):
        (output,) = saved(each, tmp_path)
        assert "vitfold.save(model, directory, backbone=True)" in output


def test_nothing_is_left_after_unfolding(tmp_path: Path) -> None:
    model = models.hf("ViTForImageClassification")
    before = [set(vars(module)) for module in model.modules()]
    vitfold.unfold(vitfold.fold(vitfold.fold(model, "tome", r=2), "drop", r=2))
    assert [set(vars(module)) for module in model.modules()] == before
    assert saved(model, tmp_path) == []


def test_a_fold_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    model = vitfold.fold(models.hf("ViTForImageClassification"), "tome", r=2)
    with pytest.raises(vitfold.MethodError):
        vitfold.fold(model, "tome", r=10_000)
    assert len(saved(model, tmp_path)) == 1
    dense = models.hf("ViTForImageClassification")
    with pytest.raises(vitfold.MethodError):
        vitfold.fold(dense, "tome", r=10_000)
    assert saved(dense, tmp_path) == []


def test_what_is_saved_is_the_model_itself(tmp_path: Path) -> None:
    model = vitfold.fold(models.hf("ViTForImageClassification"), "tome", r=2)
    saved(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
