"""Many who save into one directory at once, and some who are killed meanwhile."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saving import tiny

import vitfold
from vitfold import files
from vitfold.errors import PlanError
from vitfold.folding.calls import fold_of
from vitfold.saving import plans, store
from vitfold.saving.subject import describe

FORK = multiprocessing.get_context("fork")

SAVERS, ROUNDS = 4, 40


def marked(number: int) -> Any:
    """A folded model that is told from others by its schedule and by its weights."""
    model = tiny(depth=2)
    torch.nn.init.constant_(model.norm.bias, float(number))
    return vitfold.fold(model, "tome", r=number)


def is_marked(model: Any) -> bool:
    number = fold_of(model).method.r
    return bool((model.norm.bias == number).all())


def save_often(directory: Path, number: int, rounds: int = ROUNDS) -> None:
    """Save again and again, without pausing to describe the model."""
    model = marked(number)
    whole, bare = (describe(model, backbone=backbone) for backbone in (True, False))
    for round_ in range(rounds):
        plans.write(model, directory, bare if (round_ + number) % 5 == 0 else whole)
    plans.write(model, directory, whole)


def started(task: Callable[..., object], *arguments: Any) -> Any:
    process = FORK.Process(target=task, args=arguments)
    process.start()
    return process


def save_together(directory: Path, number: int, gate: Any) -> None:
    """Save at the same moments as others, and wait while what is there then is looked at."""
    model = marked(number)
    plan = describe(model, backbone=True)
    for _ in range(ROUNDS):
        gate.wait()
        plans.write(model, directory, plan)
        gate.wait()


def look_on(directory: Path, gate: Any) -> None:
    for _ in range(ROUNDS):
        gate.wait()
        gate.wait()
        plan, tensors = store.open_together(directory)
        assert (tensors["norm.bias"] == vars(plan.method)["r"]).all()
        assert sorted(os.listdir(directory)) == ["plan.json", "weights.safetensors"]
    assert is_marked(vitfold.load(directory))


def test_processes_that_save_at_once_leave_a_model_that_loads(tmp_path: Path) -> None:
    gate = FORK.Barrier(SAVERS + 1, timeout=60)
    savers = [started(save_together, tmp_path / "m", n + 1, gate) for n in range(SAVERS)]
    look_on(tmp_path / "m", gate)
    for saver in savers:
        saver.join()
        assert saver.exitcode == 0


def test_threads_that_save_at_once_leave_a_model_that_loads(tmp_path: Path) -> None:
    gate = threading.Barrier(SAVERS + 1, timeout=60)
    threads = [
        threading.Thread(target=save_together, args=(tmp_path / "m", n + 1, gate), daemon=True)
        for n in range(SAVERS)
    ]
    for thread in threads:
        thread.start()
    look_on(tmp_path / "m", gate)
    for thread in threads:
        thread.join()


def test_whoever_loads_meanwhile_gets_a_plan_with_its_weights(tmp_path: Path) -> None:
    vitfold.save(marked(1), tmp_path, backbone=True)
    savers = [started(save_often, tmp_path, number + 1) for number in range(2)]
    loads = 0
    while any(saver.is_alive() for saver in savers):
        plan, tensors = store.open_together(tmp_path)
        if plan.weights is not None and plan.method is not None:
            assert (tensors["norm.bias"] == vars(plan.method)["r"]).all()
            loads += 1
    assert loads > 5
    assert all(saver.exitcode == 0 for saver in savers)


def save_forever(directory: Path, number: int) -> None:
    model = marked(number)
    while True:
        vitfold.save(model, directory, backbone=True)


def test_savers_that_are_killed_leave_a_model_that_loads_and_nothing_else(tmp_path: Path) -> None:
    vitfold.save(marked(1), tmp_path, backbone=True)
    for attempt in range(8):
        saver = started(save_forever, tmp_path, attempt % 3 + 1)
        time.sleep(0.3 + 0.013 * attempt)
        os.kill(saver.pid, signal.SIGKILL)
        saver.join()
        assert is_marked(vitfold.load(tmp_path))
    vitfold.save(marked(2), tmp_path, backbone=True)
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "weights.safetensors"]


def test_what_safetensors_was_writing_goes_too(tmp_path: Path) -> None:
    vitfold.save(marked(1), tmp_path, backbone=True)
    (tmp_path / ".tmprvmaWp").write_bytes(b"half")
    (tmp_path / ".tmp-mine").write_text("mine")
    vitfold.save(marked(2), tmp_path, backbone=True)
    assert sorted(os.listdir(tmp_path)) == [".tmp-mine", "plan.json", "weights.safetensors"]


def hang(directory: Path) -> None:
    """Save, and stop for good when the weights are half written."""

    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        time.sleep(600)

    store.write_tensors = half
    vitfold.save(marked(3), directory, backbone=True)


@pytest.mark.parametrize("new", [False, True])
def test_a_saver_that_is_killed_holds_nobody_up(new: bool, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    if not new:
        vitfold.save(marked(1), directory, backbone=True)
    saver = started(hang, directory)
    while not list(directory.glob(".weights*")):
        assert saver.is_alive()
        time.sleep(0.01)
    os.kill(saver.pid, signal.SIGKILL)
    saver.join()
    if new:
        with pytest.raises(PlanError, match=r"has no plan\.json"):
            vitfold.load(directory)
    else:
        assert is_marked(vitfold.load(directory))
    vitfold.save(marked(2), directory, backbone=True)
    assert sorted(os.listdir(directory)) == ["plan.json", "weights.safetensors"]


def test_without_locks_only_what_is_old_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    for name in (".plan.0123abcd.json", ".weights.0123abcd.safetensors", ".weights.mine"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".plan.0123abcd.json", (0, 0))
    vitfold.save(marked(1), tmp_path, backbone=True)
    left = {".weights.0123abcd.safetensors", ".weights.mine"}
    assert set(os.listdir(tmp_path)) == {"plan.json", "weights.safetensors"} | left
    monkeypatch.undo()
    vitfold.save(marked(1), tmp_path, backbone=True)
    assert set(os.listdir(tmp_path)) == {"plan.json", "weights.safetensors", ".weights.mine"}


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_was_made_for_a_save_that_failed_is_gone(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(store, "write_tensors", fail)
    with pytest.raises((PlanError, KeyboardInterrupt)):
        vitfold.save(marked(1), tmp_path / "a" / "b" / "c", backbone=True)
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises((PlanError, KeyboardInterrupt)):
        vitfold.save(marked(1), tmp_path / "a" / "b", backbone=True)
    assert os.listdir(tmp_path) == ["a"]
