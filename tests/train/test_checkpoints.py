"""Checkpoints: what they give back, which are kept, and what is broken."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import run, same
from torch import Tensor

from vitfold.errors import DataError, TrainError
from vitfold.tools import results
from vitfold.train import checkpoint, evaluation
from vitfold.train import loop as loop_

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


NAMES = st.text(max_size=5) | st.integers(0, 9)


TREES = st.recursive(
    LEAVES | st.lists(st.integers(0, 9), max_size=3).map(lambda s: torch.tensor(s)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=60)
@given(tree=TREES)
def test_a_checkpoint_gives_back_what_it_was_given(
    tree: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("checkpoint")
    assert checkpoint.write(place, 3, {"all": tree}, keep=1)
    step, again = checkpoint.read(place) or (0, None)
    assert step == 3
    assert alike(again["all"], tree)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 300, 4000):
        assert checkpoint.write(tmp_path, step, {"step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000300", "step-000004000"]


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.TREE])
@pytest.mark.parametrize("spoil", ["truncate", "change", "remove"])
def test_a_broken_one_is_passed_by(tmp_path: Path, file: str, spoil: str) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, step, {"w": torch.arange(9.0) + step}, keep=3)
    path = tmp_path / "step-000000002" / file
    data = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if spoil == "truncate" else b"\x80" + data[1:])
    with pytest.warns(UserWarning, match="step-000000002 is passed by"):
        step, state = checkpoint.read(tmp_path) or (0, None)
    assert step == 1
    assert torch.equal(state["w"], torch.arange(9.0) + 1)


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, 1, {"w": torch.ones(3)}, keep=1)

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.warns(UserWarning, match="no checkpoint at step 2: .*No space left"):
        assert not checkpoint.write(tmp_path, 2, {"w": torch.ones(3)}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def test_a_training_goes_on_over_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_too(*_: Any) -> None:
        raise DataError("it cannot be written: No space left on device")

    expected = run(tmp_path / "a")
    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(results, "write", full_too)
    with pytest.warns(UserWarning, match="No space left"):
        assert same(run(tmp_path / "b"), expected)
    for module in (loop_, evaluation):
        monkeypatch.setattr(module, "save_model", full_too)
    with pytest.warns(UserWarning, match="best is not written"), pytest.raises(DataError):
        run(tmp_path / "c")


def test_what_no_checkpoint_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="a/b: a checkpoint cannot hold a set"):
        checkpoint.write(tmp_path, 1, {"a": {"b": {1}}}, keep=1)


def test_broken_checkpoints_that_were_passed_by_take_no_place(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        checkpoint.write(tmp_path, step, {"a": torch.ones(3)}, 3)
    for step in (6, 9):
        os.truncate(tmp_path / f"step-{step:09d}" / "tensors.safetensors", 5)
    with pytest.warns(UserWarning, match="is passed by"):
        assert checkpoint.read(tmp_path)[0] == 3  # type: ignore[index]
    for step in (4, 5):
        checkpoint.write(tmp_path, step, {"a": torch.ones(3)}, 1)
        assert [place.name for place in tmp_path.iterdir()] == [f"step-{step:09d}"]
