"""What a training that failed leaves behind: checkpoints if there are any, and nothing else."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import vitfold_
from support.training import RECIPE, Blobs, options, small, training

from vitfold.errors import DataError, TrainError
from vitfold.train import Recipe


class Unreadable(Blobs):
    """Images of which one cannot be read."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.left = first

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.left -= 1
        if self.left < 0:
            raise DataError("one that cannot be read")
        return super().__getitem__(index)


def test_a_failure_before_the_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    for images in (Unreadable(0), Unreadable(12)):
        with pytest.raises(DataError, match="cannot be read"):
            training(small(), RECIPE, images, tmp_path / "a" / "b")
        assert not (tmp_path / "a").exists()
    wrong = Recipe(optimizer={"opt": "adamm", "lr": 1.0}, batch_size=4)
    with pytest.raises(TrainError, match="optimizer opt=adamm"):
        training(small(), wrong, Blobs(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    (tmp_path / "scores.safetensors").write_bytes(b"scores")
    with pytest.raises(DataError, match="cannot be read"):
        training(small(), RECIPE, Unreadable(0), tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["scores.safetensors"]


def test_a_failure_after_a_checkpoint_leaves_what_it_goes_on_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        training(small(), RECIPE, Unreadable(20), tmp_path, every=1)
    assert (tmp_path / "recipe.json").exists()
    outcome = training(small(), RECIPE, Blobs(), tmp_path, every=1, resume=True)
    assert len(outcome.epochs) == RECIPE.epochs


def test_the_command_leaves_no_empty_directory(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "deep" / "out"
    assert vitfold_(monkeypatch, *options(folder, output), "--opt", "adamm") == 2
    assert not output.parent.exists()
    with monkeypatch.context() as patch:
        patch.setattr("vitfold.train.learner.Learner.step", interrupt)
        assert vitfold_(patch, *options(folder, output)) == 128 + signal.SIGINT
    assert not output.parent.exists()
    inputs = [*options(folder, output), "--seed", "9" * 20]
    assert vitfold_(monkeypatch, *inputs) == 2
    assert "--seed" in capsys.readouterr().err
    inputs = [*options(folder, output), "-b", "9" * 20]
    assert vitfold_(monkeypatch, *inputs) == 2
    assert "--batch-size" in capsys.readouterr().err
