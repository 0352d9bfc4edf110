"""`vitfold search` and `vitfold calibrate`: their progress, and images that cannot be read."""

from pathlib import Path

import pytest
from PIL import Image
from support.cli import pictures, vitfold_

import vitfold
from vitfold.cli import show
from vitfold.tools.calibrate import PASSES, passes

MODEL = (
    "vit_tiny_patch16_224", "--no-pretrained", "--img-size", "32", "--model-kwargs",
    "patch_size=8 embed_dim=24 num_heads=3 depth=2 num_classes=2",
)  # fmt: skip


def test_a_calibration_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where there is no terminal too."""
    monkeypatch.setattr(show, "SECONDS", 0.0)
    pictures(tmp_path / "data" / "train", classes=2, each=4)
    request = [*MODEL, "--data-dir", tmp_path / "data", "--images", "8", "--flops", "0.9"]
    assert vitfold_(monkeypatch, "calibrate", *request, "--output", tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "calibrating" in line]
    assert lines[0].startswith(f"calibrating: 1 of {PASSES} after 0:00:")
    assert 1 <= len(lines) <= PASSES
    assert "?" not in "".join(lines)


def test_calibration_of_a_method_saves_its_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """For every block; the progress knows how many schedules there are at most."""
    monkeypatch.setattr(show, "SECONDS", 0.0)
    pictures(tmp_path / "data" / "train", classes=2, each=4)
    request = [*MODEL, "--data-dir", tmp_path / "data", "--images", "8", "--flops", "0.9"]
    request += ["--method", "ward", "--cues", "x, k", "--output", tmp_path / "out"]
    assert vitfold_(monkeypatch, "calibrate", *request) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "calibrating" in line]
    most = passes(vitfold.Ward(flops=0.9), 2, 2)
    assert lines[0].startswith(f"calibrating: 1 of {most} after 0:00:")
    assert len(lines) <= most
    record = vitfold.folded(vitfold.load(tmp_path / "out"))
    assert record is not None
    assert isinstance(record.method, vitfold.Ward)
    assert record.method.r == list(record.schedule)
    assert vitfold_(monkeypatch, "calibrate", *request, "--method", "ltmp") == 2
    assert "nothing to calibrate" in capsys.readouterr().err


def test_a_search_names_a_picture_that_is_too_large(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pictures(tmp_path / "data" / "train", classes=2, each=2)
    Image.new("RGB", (90, 90)).save(tmp_path / "data" / "train" / "class0" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    request = [*MODEL, "--data-dir", tmp_path / "data", "--iterations", "3", "--blocks", "0,1"]
    assert vitfold_(monkeypatch, "search", *request, "--output", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "bomb.png cannot be read as an image" in shown
    assert shown.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()
