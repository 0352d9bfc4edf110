"""Commands on segmenters: train, validate, trace, bench, search and freeze."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.cli import vitfold_
from support.segment import scenes, segmenter
from torchvision.transforms.v2.functional import to_pil_image

import vitfold
from vitfold.folding.calls import fold_of
from vitfold.saving.models import create_model, save_model
from vitfold.segment import saved_classes


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: vitfold_(monkeypatch, *map(str, arguments))


TINY = ["--model-kwargs", "depth=4 embed_dim=24 num_heads=3 patch_size=8", "--img-size", "32"]


def test_a_segmenter_from_training_to_pictures(run, capsys, tmp_path: Path) -> None:
    """As a user does it: train, train folded, validate, look, time."""
    scenes(tmp_path / "d" / "train", 8)
    scenes(tmp_path / "d" / "val", 3)
    data = ["--task", "segment", "--data-dir", tmp_path / "d", "--ignore-label", "9"]
    train = [*data, "--val-split", "val", "-b", "4", "--device", "cpu"]
    name, dense = "vit_tiny_patch16_224", tmp_path / "dense"
    inputs = ["--epochs", "12", "--lr", "3e-3", "--color-jitter", "0", "--scale", "0.8,1.2"]
    assert run("train", name, *TINY, *train, *inputs, "-o", dense) == 0
    assert "best mIoU" in capsys.readouterr().out
    log = (dense / "log.csv").read_text().splitlines()
    assert log[0].split(",")[4] == "miou"
    assert float(log[-1].split(",")[4]) > 0.6
    assert saved_classes(str(dense / "last")) == 2  # as many as there are in the annotations
    ltmp = ["--method", "ltmp", "--flops", "0.8", "--epochs", "2"]
    result = ["--method", "prune-merge", "--flops", "0.7", "--epochs", "1", "--distill", "soft"]
    result += ["--method-kwargs", "iterations=4"]
    for kind, method in (("ltmp", ltmp), ("found", result)):
        assert run("train", dense / "last", *train, *method, "-o", tmp_path / kind) == 0
        assert saved_classes(str(tmp_path / kind / "last")) == 2
    capsys.readouterr()
    models = {
        dense / "last": ["--method", "tome", "--flops", "0.8"],
        tmp_path / "ltmp" / "last": [],
        tmp_path / "found" / "last": [],
    }
    for model, method in models.items():
        assert run("validate", model, *data, "--split", "val", *method,
                   "--results-file", tmp_path / "r.json") == 0  # fmt: skip
        row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
        assert row["images"] == 3
        assert row["agreement"] > 0.8
        assert {"miou", "dense_miou", "iou_0", "iou_1"} <= row.keys()
    shown = tmp_path / "shown"
    assert run("validate", dense / "last", *data, "--split", "val", "--stride", "16", "--limit", 2,
               "--flops", "0.8", "--pictures", "2", "-o", shown) == 0  # fmt: skip
    assert Image.open(shown / "scene-2.png").width > 5 * 200
    image = tmp_path / "d" / "val" / "images" / "1.png"
    assert run("trace", dense / "last", image, *data[:2], "--ignore-label", 9, "--flops", "0.8",
               "-o", shown) == 0  # fmt: skip
    assert {"1-tokens.png", "1-blocks.png", "1-classes.png"} <= {p.name for p in shown.iterdir()}
    bench = ["-b", "2", "--repeats", "1", "--warmup", "0"]
    assert run("bench", name, *TINY, "--task", "segment", "--flops", "0.8", *bench) == 0
    out = capsys.readouterr().out
    assert "free slicing" in out
    assert "textbook" not in out
    assert run("bench", tmp_path / "ltmp" / "last", *data[:4], "--split", "val", *bench) == 0
    assert run("bench", tmp_path / "found" / "last", "--task", "segment", *bench) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validate", "vit_tiny_patch16_224", *TINY, "--no-pretrained"], "no segmenter"),
        (["validate", "vit_tiny_patch16_224", *TINY, "--no-pretrained", "--task", "dense"],
         "classify or segment"),
        (["train", "vit_tiny_patch16_224", *TINY, "--aa", "rand-m9"], "auto_augment"),
        (["train", "vit_tiny_patch16_224", *TINY, "--mixup", "0.8", "-b", "2"], "mixed"),
        (["train", "vit_tiny_patch16_224", *TINY, "--decoder", "fpn"], "mask"),
        (["train", "vit_tiny_patch16_224", *TINY, "--dataset", "hfds/x"], "--dataset"),
        (["train", "vit_tiny_patch16_224", *TINY, "--flops", "0.7", "-b", "2"], "--method"),
        (["train", "vit_tiny_patch16_224", *TINY, "--scale", "2,0.5", "-b", "2"], "scale=[2.0"),
        (["train", "vit_tiny_patch16_224", *TINY, "--crop-pct", "1.2", "-b", "2"], "crop_pct=1.2"),
        (["train", "vit_tiny_patch16_224", *TINY, "--train-split", "validation", "-b", "2"],
         "those of training"),
        (["train", "vit_tiny_patch16_224", *TINY, "--teacher", "digits", "-b", "2"], "--teacher"),
        (["train", "digits"], "cannot be an encoder"),
        (["train", "x" * 300], "unknown model"),
        (["train", "vit_tiny_patch16_224", *TINY, "--num-classes", "1"], "classes=1"),
        (["train", "vit_tiny_patch16_224", *TINY, "--num-classes", "2", "--ignore-label", "8",
          "-b", "2"],
         "label 9 is beyond 2 classes"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_says_so(run, capsys, tmp_path, arguments, says) -> None:
    scenes(tmp_path / "d" / "train", 4)
    scenes(tmp_path / "d" / "validation", 2)
    task = [] if "--task" in arguments else ["--task", "segment"]
    ignored = [] if "--ignore-label" in arguments else ["--ignore-label", "9"]
    output = ["-o", tmp_path / "out", "--device", "cpu"]
    assert run(*arguments, *task, *ignored, "--data-dir", tmp_path / "d", *output) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.strip().count("\n") == 0


def test_a_segmenter_is_no_classifier(run, capsys, tmp_path: Path) -> None:
    save_model(segmenter(), tmp_path / "m")
    scenes(tmp_path / "d", 2)
    assert run("validate", tmp_path / "m", "--data-dir", tmp_path / "d", "--r", "2") == 2
    assert "by --task segment" in capsys.readouterr().err
    for command in (["sweep"], ["search", "-o", tmp_path / "s"], ["analyze", "similarity"]):
        assert run(*command, tmp_path / "m", "--data-dir", tmp_path / "d") == 2
        assert "by --task segment" in capsys.readouterr().err


def test_classes_are_those_of_both_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A class that only the held-out images have does not end a training after an epoch."""
    scenes(tmp_path / "train", 4)
    scenes(tmp_path / "val", 4)
    picture = tmp_path / "val" / "annotations" / "0.png"
    to_pil_image(torch.full((1, 44, 60), 3, dtype=torch.uint8)).save(picture)
    inputs = ["--task", "segment", "--data-dir", tmp_path, "--ignore-label", 9, "--epochs", 1]
    small = ["--model-kwargs", "depth=1 embed_dim=48 num_heads=3", "--img-size", 32, "-b", 2]
    request = ["train", "vit_tiny_patch16_224", *small, *inputs, "--output", tmp_path / "out"]
    assert vitfold_(monkeypatch, *map(str, request)) == 0
    assert saved_classes(str(tmp_path / "out" / "last")) == 4


def test_segmenters_are_frozen_and_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        scenes(tmp_path / split, 4)
    where = ["--task", "segment", "--data-dir", tmp_path, "--ignore-label", 9]
    dense, learned = tmp_path / "dense", tmp_path / "learned"
    save_model(segmenter(), dense)
    save_model(vitfold.fold(segmenter(), vitfold.LTMP(merge_threshold=0.3)), learned)
    request = ["freeze", learned, *where, "--output", tmp_path / "fixed"]
    assert vitfold_(monkeypatch, *map(str, request)) == 0
    assert "mIoU" in capsys.readouterr().out
    assert fold_of(create_model(tmp_path / "fixed")).method.name == "mergedrop"
    request = ["search", dense, *where, "--iterations", 2, "-b", 2, "--output", tmp_path / "found"]
    assert vitfold_(monkeypatch, *map(str, request)) == 0
    method = fold_of(create_model(tmp_path / "found")).method
    assert isinstance(method, vitfold.PruneMerge)
    loader = [(torch.rand(2, 3, 48, 48), torch.randint(0, 2, (2, 48, 48)))] * 2
    assert vitfold.PruneMerge.search(segmenter(), loader, iterations=2).grid == method.grid
    assert vitfold_(monkeypatch, "freeze", str(learned), "-o", str(tmp_path / "no")) == 2
    assert "search and freeze take it, by --task segment" in capsys.readouterr().err
