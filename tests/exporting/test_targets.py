"""What is particular to a target: large weights in ONNX, compiled packages, errors in one line."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import SMALL, vitfold_
from support.signals import has_signal_stack
from support.small import vit
from torch import Tensor, nn

import vitfold
from vitfold.errors import UnsupportedModel
from vitfold.exporting.graph import graph_of
from vitfold.exporting.serve import serve
from vitfold.exporting.targets import TARGETS, onnx, openvino


def model() -> nn.Module:
    return vitfold.fold(vit(depth=2).float(), "tome", r=4)


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(count))


BESIDE = {"report.json", "preprocessor_config.json"}


# Weights of more than 2 GB.


@pytest.mark.parametrize("int8", [False, True])
def test_large_weights_lie_beside_an_onnx_file(
    int8: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx, "LARGE", 10_000)
    folded, images = model(), pixels(4)
    report = vitfold.export(folded, tmp_path / "out", images=images, int8=int8, repeats=1)
    place = tmp_path / "elsewhere"
    (tmp_path / "out").rename(place)
    names = {file.name for file in place.iterdir()}
    assert names == {"model.onnx", "model.onnx.data"} | BESIDE
    assert (place / "model.onnx.data").stat().st_size > 10_000
    result = TARGETS["onnx"].open(place, report.outputs)(images)["logits"]
    cosine = torch.nn.functional.cosine_similarity(result, folded(images))
    assert cosine.min() > (0.9 if int8 else 0.99999)
    (place / "model.onnx.data").unlink()
    with pytest.raises(Exception, match=r"model\.onnx\.data"):
        TARGETS["onnx"].open(place, report.outputs)


def test_openvino_reads_large_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(onnx, "LARGE", 10_000)
    folded, images = model(), pixels(3)
    report = vitfold.export(folded, tmp_path / "out", target="openvino", repeats=1)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "model.xml",
        "model.bin",
    } | BESIDE
    result = TARGETS["openvino"].open(tmp_path / "out", report.outputs)(images)["logits"]
    torch.testing.assert_close(result, folded(images), atol=1e-4, rtol=1e-4)


def test_models_may_end_in_any_order(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    graph = graph_of(model())
    openvino.TARGET.write(graph, tmp_path)
    runs = [openvino.TARGET.open(tmp_path, graph.names) for _ in range(3)]
    while runs:
        runs.pop(0)(pixels(1))
        assert has_signal_stack()


# Packages that are compiled ahead of time.


@pytest.mark.exhaustive
def test_a_compiled_package_gives_outputs_by_name(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("it takes a compiler")
    folded, images = model(), pixels(3)
    report = vitfold.export(folded, tmp_path / "out", target="aoti", repeats=1)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.pt2"} | BESIDE
    assert set(report.corners[1].times) == {1, 8}
    for count in (1, 3):
        outputs = TARGETS["aoti"].open(tmp_path / "out", report.outputs)(images[:count])
        assert list(outputs) == ["logits"]
        torch.testing.assert_close(outputs["logits"], folded(images[:count]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(serve(folded, "aoti")(images), folded(images), atol=1e-4, rtol=1e-4)


# Errors on the command line.


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """The one line of an export that goes wrong."""
    assert vitfold_(monkeypatch, "export", *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_errors_of_commands_are_one_line_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: object) -> str:
        return told(monkeypatch, capsys, *arguments, "-o", tmp_path / "out")

    assert "run vitfold freeze, first" in error(*SMALL, "--method", "ltmp")
    assert "unknown target 'tensorrt' (known: aoti," in error("digits", "--target", "tensorrt")
    assert not (tmp_path / "out").exists()
    other = tmp_path / "out"
    other.mkdir()
    (other / "report.json").write_text('{"target": "torch"}')
    assert "holds an export for 'torch': give another directory" in error("digits")
    assert [file.name for file in other.iterdir()] == ["report.json"]


def test_a_runtime_that_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitfold.exporting.targets.base.importlib.util.find_spec", lambda _: None)
    line = told(monkeypatch, capsys, "digits", "--target", "onnx", "-o", tmp_path / "out")
    assert 'onnx is not installed: pip install "vitfold[export]"' in line
    assert list(tmp_path.iterdir()) == []


LACKS = "Exception from src/core.cpp:1:\nException from src/b.cpp:2:\nno translator for\n aten::x\n"


@pytest.mark.parametrize("step", ["write", "open"])
def test_what_a_target_cannot_do_is_one_line(
    step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError(LACKS)

    monkeypatch.setattr(openvino.TARGET, step, fails)
    request = (*SMALL, "--target", "openvino", "-o", tmp_path / "out")
    line = told(monkeypatch, capsys, *request)
    assert "OpenVINO does not take this model: no translator for aten::x: give another" in line
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnsupportedModel, match="no translator for aten::x"):
        serve(model(), "openvino")


@pytest.mark.parametrize("packed", [False, True])
def test_images_that_cannot_be_read_are_named(
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").write_bytes(b"no picture")
    first = str(photos / "0.png")
    if packed:
        photos = tmp_path / "photos.tar"
        with tarfile.open(photos, "w") as tar:
            for number in range(2):
                entry = tarfile.TarInfo(f"deep/{number}.png")
                entry.size = 10
                tar.addfile(entry, io.BytesIO(b"no picture"))
        first = f"{photos}: deep/0.png"
    arguments = ("test_vit", "--no-pretrained", "--r", 4, "--data-dir", photos)
    line = told(monkeypatch, capsys, *arguments, "-o", tmp_path / "out")
    assert f"no image of 2 can be read: {first} cannot be read: it is no picture" in line
    assert not (tmp_path / "out").exists()
