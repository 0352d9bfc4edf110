"""`vitfold train`: dense, folded, with what methods learn, and on two processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.cli import vitfold_
from support.rest import rest
from support.training import options, same, small
from torch import Tensor

import vitfold
from vitfold.cli.work import subject
from vitfold.data import Renormalized, Source
from vitfold.data import digits as digits_
from vitfold.saving.models import create_model, save_model
from vitfold.train import checkpoint


def test_the_command_trains_a_model_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    assert vitfold_(monkeypatch, *options(folder, output)) == 0
    shown = capsys.readouterr().out
    assert "best top-1" in shown
    with (output / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    model = create_model(str(output / "last"))
    assert same(model.state_dict(), load_file(output / "last" / "weights.safetensors"))
    assert model.num_classes == 2
    validate = ["validate", output / "best", "--data-dir", folder, "--split", "train", "--r", "2"]
    assert vitfold_(monkeypatch, *map(str, validate)) == 0
    assert vitfold_(monkeypatch, *options(folder, output)) == 2
    assert "--resume" in capsys.readouterr().err
    assert vitfold_(monkeypatch, *options(folder, output), "--resume") == 0


def test_the_command_trains_folded(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    more = ["--method", "tome", "--r", "2", "--distill", "soft", "--sam", "0.05", "--mixup", "0.5",
            "--smoothing", "0.1", "--grad-accum-steps", "2", "--clip-grad", "1",
            "--aa", "rand-m5-n1", "--reprob", "0.2"]  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out"), *more) == 0
    model = vitfold.load(tmp_path / "out" / "last")
    assert vitfold.trace(model, torch.zeros(1, 3, 32, 32)).counts == [[15], [13]]


def test_the_command_learns_thresholds(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    more = ["--method", "ltmp", "--flops", "0.9", "--lr-merge", "0.05", "--epochs", "1"]
    assert vitfold_(monkeypatch, *options(folder, output), *more) == 0
    shown = capsys.readouterr().out
    assert "FLOPs reached" in shown
    assert (output / "learned.png").stat().st_size > 1000
    recipe = json.loads((output / "recipe.json").read_text())["recipe"]
    assert recipe["freeze"] == "model"
    assert recipe["rates"] == {"merge": 0.05, "prune": 5e-6}
    assert recipe["smoothing"] == 0.1
    assert recipe["optimizer"] == {"opt": "momentum", "weight_decay": 0.0}
    assert not (output / "best").exists()
    visits = ["validate", output / "last", "--data-dir", folder, "--split", "train"]
    assert vitfold_(monkeypatch, *map(str, visits)) == 0
    wrong = [*more, "--method-kwargs", "prune=False", "--lr-prune", "1e-6", "--output"]
    assert vitfold_(monkeypatch, *options(folder, output), *wrong, str(tmp_path / "b")) == 2
    assert "lr_prune" in capsys.readouterr().err


def test_the_command_keeps_thresholds_and_trains_the_rest(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    more = ["--method", "ltmp", "--flops", "0.9", "--lr", "1e-4", "--epochs", "1"]
    inputs = [*options(folder, tmp_path / "out"), *more, "--freeze", "method"]
    assert vitfold_(monkeypatch, *inputs, "--lr-merge", "0.1") == 2
    assert "leave out --lr-merge" in capsys.readouterr().err
    vitfold_(monkeypatch, *inputs)  # as far as thresholds of a model that is not trained carry
    kept = checkpoint.last(tmp_path / "out" / "checkpoints")
    assert kept is not None
    before = vitfold.LTMP(flops=0.9).merge_threshold
    assert checkpoint.weights(kept)["vitfold.merge"].tolist() == pytest.approx([before] * 2)
    for rate in ("nan", "inf", "-1"):
        assert vitfold_(monkeypatch, *options(folder, tmp_path / "no"), f"--lr={rate}") == 2
        assert "expected a number from 0 up" in capsys.readouterr().err


def test_the_command_has_a_rate_for_either_matrix(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    more = ["--method", "prune-merge", "--method-kwargs", "iterations=2 keep=0.5 blocks=[0,1]",
            "--lr-merge", "1e-3", "--lr-restore", "1e-2"]  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out"), *more) == 0
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())["recipe"]
    assert recipe["rates"] == {"merge": 1e-3, "restore": 1e-2}


def test_the_command_searches_and_trains_matrices(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    more = ["--method", "prune-merge", "--flops", "0.8", "--distill", "soft", "--method-kwargs",
            "iterations=2 scope=block blocks=[0,1]"]  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, output), *more, "--freeze", "model") == 0
    recipe = json.loads((output / "recipe.json").read_text())["recipe"]
    assert recipe["freeze"] == "model"
    assert recipe["optimizer"]["lr"] == 1e-4
    assert recipe["distill"]["temperature"] == 20
    model = vitfold.load(output / "last")
    method = model._vitfold.method
    assert (method.scope, method.blocks, method.grid) == ("block", (0, 1), (4, 4))
    x = torch.zeros(1, 3, 32, 32)
    share = vitfold.flops(model, x) / vitfold.flops(vitfold.unfold(model), x)
    assert share == pytest.approx(0.8, abs=0.01)
    again = [*options(folder, output), *more, "--resume", "--freeze", "model"]
    assert vitfold_(monkeypatch, *again) == 0
    assert vitfold_(monkeypatch, *options(folder, output), "--freeze", "matrices") == 2
    assert "expected none, model, method" in capsys.readouterr().err
    assert vitfold_(monkeypatch, *options(folder, output), *more, "--r", "3", "--resume") == 2
    assert "takes --flops" in capsys.readouterr().err
    more[-1] = "keeps=2"
    assert vitfold_(monkeypatch, *options(folder, output), *more, "--resume") == 2
    assert "no option 'keeps'" in capsys.readouterr().err
    scores = (output / "scores.safetensors").read_bytes()
    assert vitfold_(monkeypatch, *again[:-3], "--seed", "5") == 2
    assert "holds a training" in capsys.readouterr().err
    assert (output / "scores.safetensors").read_bytes() == scores


def test_the_embedded_model_brings_its_own_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    every = digits_._digits
    few = {split: tuple(part[:48] for part in every(split)) for split in ("train", "test")}
    monkeypatch.setattr(digits_, "_digits", few.get)
    inputs = ["train", "digits", "--pretrained", "-b", "24", "--epochs", "1", "--device", "cpu"]
    for method, name in ([], "dense"), (["--method", "tome", "--flops", "0.6"], "folded"):
        output = tmp_path / name
        assert vitfold_(monkeypatch, *inputs, "--lr", "1e-5", *method, "--output", output) == 0
        assert "best top-1" in capsys.readouterr().out
        assert vitfold_(monkeypatch, "validate", output / "last") == 0
        assert vitfold_(monkeypatch, *inputs, *method, "--output", output, "--resume") == 2
        assert "was 1e-05" in capsys.readouterr().err
        same = [*inputs, "--lr", "1e-5", *method, "--output", output, "--resume"]
        assert vitfold_(monkeypatch, *same, "--no-val") == 2
        assert "val_split was 'validation', now None" in capsys.readouterr().err
        again = [*inputs, "--output", tmp_path / f"{name}-more"]
        assert vitfold_(monkeypatch, *again[:1], output / "last", *again[3:]) == 0
    assert vitfold_(monkeypatch, *inputs, "--reprob", "0.5", "--output", tmp_path / "erased") == 2
    assert "re_prob: the digits take only no_aug" in capsys.readouterr().err
    images = digits_.Digits("train")
    model = create_model("digits", pretrained=True)
    still = Source("digits", split="train").augment(model, {"no_aug": True})
    assert still(digits_.Digit(Tensor([1]), Tensor([2]))) == 1
    images.transform = Source("digits", split="train").augment(model, {"hflip": 0.5})
    one, other = images[3][0], images[3][0]
    assert not torch.equal(one, other)
    assert torch.equal(digits_.Digits("train")[3][0], digits_.Digits("train")[3][0])


def test_a_search_leaves_out_what_cannot_be_read_as_training_does(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    next((folder / "train").rglob("*.png")).write_bytes(b"no picture")
    result = ["--method", "prune-merge", "--flops", "0.8", "--method-kwargs", "iterations=4"]
    inputs = [*options(folder, tmp_path / "out"), *result, "--no-val"]
    assert vitfold_(monkeypatch, *inputs) == 0


def test_a_teacher_sees_images_as_it_wants_them(tmp_path: Path) -> None:
    other = small(pretrained_cfg_overlay={"mean": (0.1,) * 3, "std": (0.3,) * 3})
    save_model(other, tmp_path)
    model = subject.teacher(str(tmp_path), small())
    assert isinstance(model, Renormalized)
    save_model(small(), tmp_path)
    assert not isinstance(subject.teacher(str(tmp_path), small()), Renormalized)


def test_a_training_begins_from_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "one"), "--seed", "1") == 0
    kept = max((tmp_path / "one" / "checkpoints").iterdir())
    begun = [*options(folder, tmp_path / "two"), "--initial-checkpoint", str(kept)]
    assert vitfold_(monkeypatch, *begun, "--lr", "1e-30", "--weight-decay", "0") == 0
    one, two = (load_file(tmp_path / o / "last" / "weights.safetensors") for o in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    capsys.readouterr()
    begun[begun.index("patch_size=8 embed_dim=24 num_heads=3 depth=2")] = "depth=1"
    begun[-3] = str(tmp_path / "three")
    assert vitfold_(monkeypatch, *begun) == 2
    assert "of another model or method" in capsys.readouterr().err


SHARPNESS_AWARE = ["--sam", 0.05, "--opt", "sgd", "--lr", 0.05, "--clip-grad", 1]


THRESHOLDS = ["--method", "ltmp", "--flops", 0.93, "--lr-merge", 0.05, "--lr-prune", 1e-3]


@pytest.mark.parametrize(
    ("way", "file"),
    [(SHARPNESS_AWARE, "weights.safetensors"), *rest((THRESHOLDS, "weights.safetensors"))],
    ids=["all", "thresholds"],
)
def test_two_processes_come_to_what_one_comes_to(
    way: list[Any], file: str, folder: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randint(256, (30, 40, 3), generator=generator).byte()
        Image.fromarray(noise.numpy()).save(path)
    for output, processes, batch in (("one", 1, 8), ("two", 2, 4)):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m"]
        command = [sys.executable, "-m", *(launcher if processes == 2 else []), "vitfold"]
        request = [*options(folder, tmp_path / output), "-b", batch, *way]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command), *map(str, request)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / o / "last" / file) for o in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
    rows = [json.loads((tmp_path / o / "recipe.json").read_text()) for o in ("one", "two")]
    assert [row["processes"] for row in rows] == [1, 2]
