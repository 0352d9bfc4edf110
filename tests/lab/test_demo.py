"""The embedded model and the demo."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import registered

from vitfold.cli.demo import demo as command
from vitfold.data import digits
from vitfold.data.digits import load_split
from vitfold.errors import MissingExtra
from vitfold.exporting.runtime import Runtime
from vitfold.lab.demo import accuracy, photographs, speed
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with a narrow model, few rounds and few digits."""
    images, labels = load_split("test")
    monkeypatch.setattr(accuracy, "load_split", lambda _: (images[:48], labels[:48]))
    monkeypatch.setattr(accuracy, "SHARES", (0.6,))
    narrow = registered("vit_tiny_patch16_224", img_size=224, depth=2, embed_dim=48, num_heads=3)
    monkeypatch.setattr(speed, "real_model", lambda: narrow)
    monkeypatch.setattr(speed, "BATCH", 2)
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "RUNTIMES", ("onnxruntime",))
    monkeypatch.setattr(speed, "SHARE", 0.8)
    monkeypatch.setattr(photographs, "SHARE", 0.8)
    monkeypatch.setenv("COLUMNS", "200")


def test_demo_writes_tables_plot_and_pictures(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", *accuracy.METHODS]
    dense = rows[0]["gflops"]
    assert all(abs(row["gflops"] / dense - 0.6) < 0.01 for row in rows[1:])
    assert {path.name for path in tmp_path.glob("*.png")} >= {
        "pareto.png",
        "tokens-lgtm.png",
        "flower-ward.png",
        "china-ward.png",
    }
    shown = capsys.readouterr().out
    assert "random" in shown
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["model"], row["runtime"]) for row in rows] == [
        (model, runtime)
        for runtime in ("eager torch", "ONNX Runtime")
        for model in ("dense", "ward 0.8")
    ]
    assert rows[0]["speedup"] == rows[0]["eager_speedup"] == rows[2]["speedup"] == 1
    assert shown.rstrip().splitlines()[-1].startswith("vitfold tune deit_small_patch16_224 ")


def known(name: str = "eager", **options: Any) -> Runtime:
    """One runtime is not installed."""
    if name == "no-such":
        raise MissingExtra("it is not installed")
    return Runtime(name, **options)


@pytest.mark.parametrize(
    ("installed", "used"),
    [
        ((), ["eager"]),
        (("no-such", "onnxruntime"), ["eager", "onnxruntime"]),
        (("onnxruntime", "openvino"), ["eager", "onnxruntime"]),
    ],
)
def test_the_fastest_runtime_that_is_installed_is_taken(
    installed: tuple[str, ...], used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "RUNTIMES", installed)
    monkeypatch.setattr(speed, "Runtime", known)
    assert [runtime.name for runtime in speed.runtimes()] == used


def test_every_step_moves_the_bar(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "RUNTIMES", ())
    monkeypatch.setattr(accuracy, "METHODS", ("ward",))
    done: list[str] = []
    dense = speed.real_model()
    speed.rows(dense, photographs.batch(dense, 2), lambda: done.append("speed"))
    list(accuracy.rows(lambda: done.append("accuracy")))
    assert done.count("speed") == speed.steps()
    assert done.count("accuracy") == accuracy.steps()
