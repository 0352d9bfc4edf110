"""`vitfold train`: mistakes are one line, and cost nothing."""

import shutil
from pathlib import Path

import pytest
from support.cli import vitfold_
from support.training import options


def test_the_command_writes_over_no_model(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out")) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out")) == 2
    assert "holds what was trained before" in capsys.readouterr().err


def test_images_of_which_none_can_be_read_end_a_training_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    for picture in (folder / "train").rglob("*.png"):
        picture.write_bytes(b"no picture")
    for workers in "0", "1":
        more = ["--workers", workers]
        assert vitfold_(monkeypatch, *options(folder, tmp_path / workers), *more) == 2
        shown = capsys.readouterr().err
        assert "cannot be read as an image" in shown
        assert shown.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--opt", "adamm"], "optimizer opt=adamm"),
        (["--mean", "a,b"], "--mean 'a,b'"),
        (["--device", "gpu"], "--device 'gpu'"),
        (["--distill", "warm"], "distill='warm'"),
        (["-b", "64"], "fewer than the 64 of one step"),
        (["--train-split", "trian"], "no split 'trian' in it: it has train"),
        (["--num-classes", "1"], "the data has 2 classes, the model 1"),
        (["--teacher", "digits"], "--distill soft"),
        (["--teacher", "digits", "--distill", "soft"], "--teacher has classes=10"),
        (["--output", __file__], "no directory"),
        (["--initial-checkpoint", "nowhere"], "nowhere is no checkpoint"),
        (["--aug-kwargs", "wings=2"], "augmentation"),
        (["--aug-kwargs", "separate=True"], "one transform of all"),
        (["--std", "0,0,0"], "std=[0.0, 0.0, 0.0]"),
        (["--std", "0.5,0.5"], "std=[0.5, 0.5]: expected three numbers"),
        (["--crop-pct", "nan"], "crop_pct=nan"),
        (["--scale", "0.8,0.5"], "scale=[0.8, 0.5]: expected two numbers, the smaller first"),
        (["--ratio", "0,0"], "ratio=[0.0, 0.0]: expected two numbers"),
        (["--lr", "1e40"], "lr=1e+40"),
        (["--min-lr", "nan"], "min_lr=nan"),
        (["--warmup-lr", "-1"], "warmup_lr=-1.0"),
        (["--layer-decay", "0"], "layer_decay=0.0"),
        (["--amp", "--amp-dtype", "float16"], "float16 is for GPUs"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path, more: list[str], message: str,
) -> None:  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out"), *more) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_recipe_that_is_broken_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    request = options(folder, output)
    assert vitfold_(monkeypatch, *request) == 0
    whole = (output / "recipe.json").read_text()
    for text, words in (("{", "cannot be read"), ("[1]", "no recipe"), (None, "cannot be read")):
        (output / "recipe.json").unlink(missing_ok=True)
        if text:
            (output / "recipe.json").write_text(text)
        capsys.readouterr()
        assert vitfold_(monkeypatch, *request, "--resume") == 2
        assert words in capsys.readouterr().err
    (output / "recipe.json").write_text(whole)
    assert vitfold_(monkeypatch, *request, "--resume") == 0


def test_data_that_have_changed_are_other_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    request = options(folder, tmp_path / "out")
    assert vitfold_(monkeypatch, *request) == 0
    next(folder.rglob("*.png")).unlink()
    assert vitfold_(monkeypatch, *request, "--resume") == 2
    assert "images was 16, now 15" in capsys.readouterr().err


def test_what_a_folder_without_splits_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    request = options(folder / "train", tmp_path / "out")
    place = request.index("--val-split")
    del request[place : place + 2]
    assert vitfold_(monkeypatch, *request) == 2
    assert "those of training" in capsys.readouterr().err
    assert vitfold_(monkeypatch, *request, "--no-val") == 0
