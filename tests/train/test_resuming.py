"""Trainings that were killed or stopped end as if nothing had happened. These tests fork."""

import csv
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import (
    LEARN,
    RECIPE,
    STEPS,
    Blobs,
    learned,
    learner,
    run,
    same,
    small,
    training,
)
from torch import nn

import vitfold
from vitfold.errors import TrainError
from vitfold.train import Distillation, Recipe, checkpoint
from vitfold.train import loop as loop_


def child(task: Callable[[], object]) -> int:
    """The exit code of a process that does the task; negative: the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=task)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def killed_after(step: int, *arguments: Any, **options: Any) -> Callable[[], None]:
    def task() -> None:
        original = loop_.Training._after

        def after(self: Any, now: int, *args: Any, **kwargs: Any) -> None:
            original(self, now, *args, **kwargs)
            if now == step:
                os.kill(os.getpid(), signal.SIGKILL)

        loop_.Training._after = after  # type: ignore[method-assign]
        run(*arguments, **options)

    return task


def killed_in_checkpoint(number: int, where: str, *arguments: Any) -> Callable[[], None]:
    """Killed in the middle of writing the checkpoint of that number."""

    def task() -> None:
        left = [number]

        def die(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if where == "save_file":
                    Path(args[1]).write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        original = getattr(checkpoint, where)
        setattr(checkpoint, where, die)
        run(*arguments)

    return task


def test_killed_at_any_step_it_ends_the_same(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    dice = random.Random(3)
    for trial in range(20):
        output, step = tmp_path / str(trial), dice.randint(1, STEPS)
        assert child(killed_after(step, output)) == -signal.SIGKILL
        if trial % 3 == 0:  # a second time
            later = dice.randint(1, STEPS)
            child(killed_after(later, output))
        assert same(run(output), expected), f"killed after step {step}"
        with (output / "log.csv").open() as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


@pytest.mark.parametrize("where", ["save_file", "_digest", "_to_disk", "_clear"])
def test_killed_while_writing_a_checkpoint_it_ends_the_same(tmp_path: Path, where: str) -> None:
    expected = run(tmp_path / "whole")
    for number in (1, 4):
        output = tmp_path / str(number)
        assert child(killed_in_checkpoint(number, where, output)) == -signal.SIGKILL
        assert same(run(output), expected)
        assert not list((output / "checkpoints").glob(".*"))


VARIANTS: dict[str, dict[str, Any]] = {
    "sam": {"sam": 0.05},
    "distilled": {"distill": Distillation("soft", 0.5, 2.0)},
    "mixed": {"mix": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}},
    "warm": {"schedule": {"sched": "cosine", "warmup_epochs": 1, "warmup_lr": 1e-5}},
    "sgd": {"optimizer": {"opt": "sgd", "lr": 0.01, "momentum": 0.9}},
    "lion": {"optimizer": {"opt": "lion", "lr": 1e-4}},
    "still": {"schedule": {"sched": "none"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_training_goes_on_as_it_was(tmp_path: Path, name: str) -> None:
    recipe = Recipe(**{**vars(RECIPE), **VARIANTS[name]})
    expected = run(tmp_path / "whole", recipe)
    assert child(killed_after(5, tmp_path / "cut", recipe)) == -signal.SIGKILL
    assert same(run(tmp_path / "cut", recipe), expected)


def test_a_folded_model_in_low_precision_goes_on_as_it_was(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return vitfold.fold(small(), "tome", r=4)

    expected = run(tmp_path / "whole", RECIPE, model(), precision="bf16")
    assert not same(expected, run(tmp_path / "dense", RECIPE, small(), precision="bf16"))
    dies = killed_after(5, tmp_path / "cut", RECIPE, model(), precision="bf16")
    assert child(dies) == -signal.SIGKILL
    assert same(run(tmp_path / "cut", RECIPE, model(), precision="bf16"), expected)


def test_a_signal_ends_it_after_its_step(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    original = loop_.Training._after

    def after(self: Any, now: int, *args: Any, **kwargs: Any) -> None:
        original(self, now, *args, **kwargs)
        if now == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_.Training, "_after", after)
        model = small(drop_path_rate=0.2, proj_drop_rate=0.1)
        outcome = training(model, RECIPE, Blobs(), tmp_path / "cut", Blobs(6))
    assert outcome.stop == 5
    assert checkpoint.last(tmp_path / "cut" / "checkpoints") == (
        tmp_path / "cut" / "checkpoints" / "step-000000005"
    )
    assert same(run(tmp_path / "cut"), expected)
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "cut")]
    losses = [[row["loss"] for row in csv.DictReader(log.splitlines())] for log in logs]
    assert losses[0] == losses[1]  # of whole epochs, wherever they were cut


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(TrainError, match=r"recipe\.epochs was 3, now 4: --resume takes the same"):
        run(tmp_path, Recipe(**{**vars(RECIPE), "epochs": 4}))
    with pytest.raises(TrainError, match="holds a training: go on with it by --resume"):
        run(tmp_path, resume=False)


def test_a_training_that_is_over_stays_over(tmp_path: Path) -> None:
    expected = run(tmp_path)
    stamp = (tmp_path / "log.csv").read_text()
    assert same(run(tmp_path), expected)
    assert (tmp_path / "log.csv").read_text() == stamp


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_learned_goes_on_as_it_was(tmp_path: Path, frozen: bool) -> None:
    lr = None if frozen else 1e-3
    optimizer = {**LEARN.optimizer, "lr": lr}
    recipe = Recipe(
        **{**vars(LEARN), "freeze": "model" if frozen else "none", "optimizer": optimizer}
    )
    expected = run(tmp_path / "whole", recipe, learner())
    for step in (1, 5, 8):
        dies = killed_after(step, tmp_path / str(step), recipe, learner())
        assert child(dies) == -signal.SIGKILL
        assert same(run(tmp_path / str(step), recipe, learner()), expected)


def with_matrices() -> nn.Module:
    """With matrices that mix the 16 patches in both blocks."""
    scores = tuple(tuple(float(patch % 5) for patch in range(16)) for _ in range(2))
    method = vitfold.PruneMerge(0.3, 0.2, (0, 1), grid=(4, 4), scores=scores)
    return vitfold.fold(small(global_pool="avg"), method)


@pytest.mark.parametrize("stays", ["nothing", "the model", "the matrices"])
def test_matrices_and_model_are_trained_together_or_alone(tmp_path: Path, stays: str) -> None:
    recipe = Recipe(
        batch_size=4,
        epochs=1,
        distill=Distillation("soft", 1.0, 20.0),
        freeze="model" if stays == "the model" else "method" if stays == "the matrices" else "none",
    )
    model = with_matrices()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    after = run(tmp_path / "whole", recipe, model)
    assert all(values.requires_grad for values in model.parameters())
    for name, values in after.items():
        still = stays == ("the matrices" if name in learned(after) else "the model")
        assert torch.equal(values, before[name]) == still, name
    assert (tmp_path / "whole" / "best").exists()
    dies = killed_after(3, tmp_path / "killed", recipe, with_matrices())
    assert child(dies) == -signal.SIGKILL
    assert same(run(tmp_path / "killed", recipe, with_matrices()), after)
