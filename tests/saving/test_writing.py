"""What is in a directory of a saved model, at every moment of saving."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from support import models
from support.saving import same, tiny

import vitfold
from vitfold.errors import PlanError
from vitfold.saving import store


def test_the_plan_has_indices_and_no_paths(tmp_path: Path) -> None:
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path, backbone=True)
    text = (tmp_path / "plan.json").read_text()
    assert "blocks" not in text
    data = json.loads(text)
    assert data["schema"] == 2
    assert data["schedule"] == [3, 3, 3, 3]
    assert data["versions"]["timm"] == timm.__version__
    assert data["weights"] == {"file": "weights.safetensors", "backbone": True, "dtype": None}


def test_saving_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    before = torch.get_rng_state()
    vitfold.save(model, tmp_path, backbone=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_of_weights_is_the_state_dict(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    tiny().load_state_dict(load_file(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("backbone", [False, True])
def test_saving_twice_gives_the_same_bytes(backbone: bool, tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    contents = []
    for directory in (tmp_path / "a", tmp_path / "a", tmp_path / "b" / "c"):
        vitfold.save(model, directory, backbone=backbone)
        contents.append({file.name: file.read_bytes() for file in directory.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert set(contents[0]) == {"plan.json"} | ({"weights.safetensors"} if backbone else set())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("call", range(4))
def test_a_plan_is_there_at_every_moment(
    call: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = vitfold.fold(tiny(), "tome", r=3)
    new = vitfold.fold(models.scatter(tiny(), seed=8), "drop", r=2)
    vitfold.save(old, tmp_path, backbone=True)
    replace, calls = os.replace, []

    def kill(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) > call:
            raise error("killed")
        replace(*paths)

    monkeypatch.setattr(os, "replace", kill)
    if call >= 2 and error is OSError:  # the new plan is there: what is left is its usual name
        vitfold.save(new, tmp_path, backbone=True)
    else:
        with pytest.raises(PlanError if error is OSError else error):
            vitfold.save(new, tmp_path, backbone=True)
    monkeypatch.undo()
    assert same(old if call < 2 else new, vitfold.load(tmp_path))
    vitfold.save(new, tmp_path, backbone=True)
    assert same(new, vitfold.load(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "weights.safetensors"]


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_disk_that_is_full_loses_nothing(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)

    def fail(*_: Any, **__: Any) -> None:
        raise error("No space left on device")

    monkeypatch.setattr("vitfold.saving.store.save_file", fail)
    with pytest.raises(PlanError, match=r"cannot be written: .*No space left"):
        vitfold.save(vitfold.fold(tiny(), "drop", r=1), tmp_path, backbone=True)
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "weights.safetensors"]
    assert same(model, vitfold.load(tmp_path))


def test_without_links_the_new_plan_has_the_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", fail)
    model = vitfold.fold(tiny(), "tome", r=3)
    for files in (store.WEIGHTS, store.SPARE, store.WEIGHTS):
        vitfold.save(model, tmp_path, backbone=True)
        assert sorted(os.listdir(tmp_path)) == ["plan.json", files]
        assert same(model, vitfold.load(tmp_path))


def test_weights_that_no_plan_names_any_more_go(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    vitfold.save(model, tmp_path)
    assert os.listdir(tmp_path) == ["plan.json"]
    (tmp_path / "weights.safetensors").write_bytes(b"of somebody else")
    vitfold.save(model, tmp_path)
    assert len(os.listdir(tmp_path)) == 2


def test_what_a_plan_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), vitfold.ToMe(2, seed=2**60))
    with pytest.raises(PlanError, match=r"method\.seed="):
        vitfold.save(model, tmp_path)
    assert not os.listdir(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="file cannot be written"):
        vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path / "file")
