"""The embedded model and the demo."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from vitfold.cli.demo import demo as command
from vitfold.data import digits
from vitfold.data.digits import load_split
from vitfold.lab import demo
from vitfold.methods import ready
from vitfold.saving.models import create_model


def test_the_embedded_model_is_small_and_reads_digits() -> None:
    assets = resources.files("vitfold").joinpath("assets", "digits")
    assert len(assets.joinpath("weights.safetensors").read_bytes()) <= 3_000_000
    card = json.loads(assets.joinpath("training.json").read_text())
    model = create_model("digits", pretrained=True).eval()
    images, labels = load_split("test")
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(card["held_out_accuracy"], abs=0.005)
    assert len(model.blocks) >= 12
    assert model.patch_embed.num_patches >= 196


def test_the_splits_share_no_digit() -> None:
    train, test = (digits._digits(split)[2].tolist() for split in ("train", "test"))
    assert sorted(train + test) == list(range(1797))
    assert torch.equal(load_split("test")[0], load_split("test")[0])


def test_demo_writes_table_plot_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = load_split("test")
    monkeypatch.setattr(demo, "load_split", lambda _: (images[:48], labels[:48]))
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "SHARES", (0.6,))
    monkeypatch.setenv("COLUMNS", "200")
    command(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", *ready()]
    dense = rows[0]["gflops"]
    assert all(abs(row["gflops"] / dense - 0.6) < 0.01 for row in rows[1:])
    assert {path.name for path in tmp_path.glob("*.png")} >= {"pareto.png", "tokens-lgtm.png"}
    assert "bound" in capsys.readouterr().out
