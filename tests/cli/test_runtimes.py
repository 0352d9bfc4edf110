"""`bench`, `sweep` and `validate` in the runtime that serves the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.cli import pictures, vitfold_
from support.small import vit
from torch import nn

import vitfold
from vitfold.cli import names, show
from vitfold.cli.work.serving import all_served
from vitfold.errors import UnsupportedModel
from vitfold.exporting.runtime import Runtime
from vitfold.exporting.serve import RUNTIMES
from vitfold.lab.candidate import smaller_images
from vitfold.lab.styles import BASELINES
from vitfold.segment import Segmenter, scene_transform, score
from vitfold.segment.pictures import compare, paint
from vitfold.tools.answers import answers_of
from vitfold.tools.baselines import BOUND, DENSE, EAGER, FOLDED, TEXTBOOK

SMALL = [
    "vit_tiny_patch16_224", "--img-size", "64",
    "--model-kwargs", "depth=2 embed_dim=48 num_heads=3 num_classes=2",
]  # fmt: skip

ONCE = ["-b", "1", "--repeats", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "data", classes=2, each=3)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(show.console, "width", 250)
    return lambda *arguments: vitfold_(monkeypatch, *arguments)


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def test_names_are_those_of_runtimes() -> None:
    assert tuple(RUNTIMES) == names.RUNTIMES


def test_bench_times_all_candidates_in_a_runtime(run, capsys, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "rows.json"
    request = ("bench", *SMALL, "--r", "2", *ONCE, "--warmup", "0", "--results-file", file)
    assert run(*request, "--runtime", "onnxruntime") == 0
    told = capsys.readouterr().out
    assert "batch size 1, in ONNX Runtime" in told
    assert "x dense in eager torch" in told
    rows = {row["name"]: row for row in rows_of(file)}
    assert list(rows) == [DENSE, TEXTBOOK, BOUND, FOLDED]
    for row in rows.values():
        assert (row["runtime"], row["int8"], row["memory_mb"]) == ("onnxruntime", False, None)
        ratio = rows[DENSE]["eager_speedup"] * row["speedup"]
        assert row["eager_speedup"] == pytest.approx(ratio)
    assert rows[FOLDED]["flops_share"] < rows[DENSE]["flops_share"] == 1


def test_compile_is_a_word_for_a_runtime(run, monkeypatch, capsys, tmp_path: Path) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    for number, words in enumerate((["--compile"], ["--runtime", "compile"])):
        file = tmp_path / f"{number}.json"
        request = ("bench", *SMALL, "--r", "2", *ONCE, *words, "--results-file", file)
        assert run(*request) == 0
        assert "in compiled torch" in capsys.readouterr().out
        for row in rows_of(file):
            assert row["runtime"] == "compile"
            assert row["memory_mb"] > 0
            assert row["eager_speedup"] > 0
    assert len(compiled) == 8


def test_what_a_runtime_does_not_take_is_left_out_where_others_do_without_it(capsys) -> None:
    class Choosy(Runtime):
        def serve(self, model: nn.Module) -> nn.Module:
            if isinstance(model, nn.ReLU):
                raise UnsupportedModel("no such operator")
            return nn.Sequential(model)

    models: dict[str, nn.Module] = {name: nn.Identity() for name in (DENSE, TEXTBOOK, BOUND)}
    served = all_served(models | {TEXTBOOK: nn.ReLU()}, Choosy("compile"))
    assert list(served) == [DENSE, BOUND, EAGER]
    assert served[EAGER] is models[DENSE] is not served[DENSE]
    assert "textbook ToMe is left out: no such operator" in capsys.readouterr().err
    assert list(all_served(models, Choosy())) == [*models]
    for name in (DENSE, BOUND):
        with pytest.raises(UnsupportedModel):
            all_served(models | {name: nn.ReLU()}, Choosy("compile"))


def test_validate_says_what_the_runtime_answers(run, capsys, data: Path, tmp_path: Path) -> None:
    """In single precision what eager torch does, in eight bits something near it."""
    for package in ("openvino", "nncf", "onnxruntime"):
        pytest.importorskip(package)
    runtimes = (["onnxruntime"], ["openvino", "--int8"])
    vitfold.save(small_model(), tmp_path / "model", backbone=True)
    request = ("validate", tmp_path / "model", "--data-dir", data)
    results = []
    for number, words in enumerate((["eager"], *runtimes)):
        file = tmp_path / f"{number}.json"
        assert run(*request, "--runtime", *words, "--results-file", file) == 0
        results += rows_of(file)
    told = " ".join(capsys.readouterr().out.split())
    assert "in ONNX Runtime; dense in eager torch" in told
    assert "in OpenVINO INT8; dense in eager torch" in told
    eager, single, eight = results
    assert [row["runtime"] for row in results] == ["eager", "onnxruntime", "openvino"]
    assert [row["int8"] for row in results] == [False, False, True]
    for name in ("images", "top1", "dense_top1", "agreement"):
        assert single[name] == eager[name]
    assert eight["dense_top1"] == eager["dense_top1"]
    assert single["kl"] == pytest.approx(eager["kl"], rel=1e-3)
    assert abs(eight["kl"] / eager["kl"] - 1) > 1e-3


def small_model() -> nn.Module:
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64, "num_classes": 2}
    model = vitfold.create_model("vit_tiny_patch16_224", pretrained=False, **options).eval()
    return vitfold.fold(model, "tome", r=4)


def test_a_sweep_is_of_one_runtime(run, capsys, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file, page = tmp_path / "rows.json", tmp_path / "page.html"
    request = ("sweep", *SMALL, "--no-pretrained", "--data-dir", data, "--methods", "tome",
               "--flops", "0.8", *ONCE)  # fmt: skip
    there = ("--runtime", "onnxruntime", "--results-file", file)
    assert run(*request, *there) == 0
    assert "Speed, batch size 1, in ONNX Runtime" in capsys.readouterr().out
    before = rows_of(file)
    assert [row["method"] for row in before] == ["dense", "tome", *BASELINES]
    assert {row["runtime"] for row in before} == {"onnxruntime"}
    dense, tome, *_ = before
    assert dense["agreement"] == 1
    assert dense["kl"] == pytest.approx(0, abs=1e-6)
    assert tome["share_b1"] > 0
    assert run(*request, *there) == 0
    assert rows_of(file) == before
    assert run(*request, "--results-file", file) == 2
    assert "runtime='onnxruntime', not 'eager'" in capsys.readouterr().err
    assert run(*request, *there, "--int8") == 2
    assert "int8=False, not True" in capsys.readouterr().err
    assert run("report", file, "-o", page) == 0
    assert "<th>runtime</th>" in page.read_text()


@pytest.mark.exhaustive
def test_a_sweep_in_eight_bits(run, capsys, data: Path, tmp_path: Path) -> None:
    """Its ranges are those of the images; even the dense model is not what it is in float."""
    for package in ("openvino", "nncf"):
        pytest.importorskip(package)
    file = tmp_path / "rows.json"
    request = ("sweep", *SMALL, "--no-pretrained", "--data-dir", data, "--methods", "tome",
               "--flops", "0.8", "--no-baselines", *ONCE)  # fmt: skip
    assert run(*request, "--runtime", "openvino", "--int8", "--results-file", file) == 0
    assert "in OpenVINO INT8" in capsys.readouterr().out
    rows = rows_of(file)
    assert [row["method"] for row in rows] == ["dense", "tome"]
    for row in rows:
        assert (row["runtime"], row["int8"]) == ("openvino", True)
        assert row["kl"] > 1e-9
    assert rows[1]["share_b1"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--runtime", "openvin"], "unknown runtime 'openvin' (did you mean 'openvino'?)"),
        (["validate", "--int8"], "runtime 'eager' has no INT8"),
        (["sweep", "--int8", "--runtime", "compile"], "runtime 'compile' has no INT8"),
        (["validate", "--amp", "--runtime", "openvino"], "--amp is for eager and compile"),
        (["bench", "--compile", "--runtime", "openvino"], "give one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(
    run, capsys, arguments: list[str], words: str
) -> None:
    pytest.importorskip("openvino")
    command, *rest = arguments
    assert run(command, "a model that nobody makes", *rest) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert words in told
    assert told.startswith("error: ")


def test_a_device_that_a_runtime_does_not_run_on_is_refused(run, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("vitfold.cli.values.device", torch.device)
    for command in ("bench", "sweep", "validate"):
        assert run(command, "digits", "--device", "cuda", "--runtime", "onnxruntime") == 2
        assert "runs on the CPU: leave out --device cuda" in capsys.readouterr().err


def test_images_of_other_numbers_of_tokens_are_frozen_first(run, capsys, data: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = data.parent / "model"
    vitfold.save(vitfold.fold(vitfold.unfold(small_model()), "ltmp"), model, backbone=True)
    request = ("bench", model, "--data-dir", data, *ONCE)
    assert run(*request, "--runtime", "onnxruntime") == 2
    assert "freeze" in capsys.readouterr().err


# What stands for a model.


def test_a_segmenter_is_scored_by_what_a_runtime_makes_of_it() -> None:
    pytest.importorskip("onnxruntime")
    segmenter = Segmenter(vit(depth=1).float(), 3, "linear").float().eval()
    folded = vitfold.fold(segmenter, "tome", r=4)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 40, 60, generator=generator)
    scenes = [(image, torch.randint(0, 3, (40, 60), generator=generator))]
    dense = vitfold.unfold(Segmenter(vit(depth=1).float(), 3, "linear").float().eval())
    dense.load_state_dict(folded.state_dict())
    eager = score(folded, dense, scenes)
    served = score(Runtime("onnxruntime").answering(folded), dense, scenes)
    assert eager.agreement < 1
    assert served.agreement == pytest.approx(eager.agreement, abs=1e-3)
    assert served.ious == pytest.approx(eager.ious, abs=1e-3)


def test_pictures_are_of_what_the_runtime_answers() -> None:
    """Which here says one class of every pixel."""

    class Flat(nn.Module):
        window = (28, 28)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = x.new_zeros(len(x), 3, *x.shape[-2:])
            logits[:, 2] = 1
            return logits

    segmenter = Segmenter(vit(depth=1).float(), 3, "linear").float().eval()
    picture = Image.new("RGB", (28, 28), "white")
    drawn = compare(Flat(), picture, scene_transform(segmenter), dense=segmenter)
    folded = drawn.width - drawn.width // 4  # of four pictures the third
    cut = drawn.crop((drawn.width // 2, drawn.height // 2, folded, drawn.height)).getcolors(99999)
    assert cut is not None
    expected = paint(picture, torch.full((28, 28), 2), 3).getpixel((0, 0))
    assert expected in {colour for _, colour in cut}


def test_outputs_by_name_hold_logits() -> None:
    logits = torch.zeros(2, 3)
    assert answers_of(nn.Identity(), {"logits": logits}) is logits


def test_a_smaller_image_is_made_by_products_where_a_program_is_written() -> None:
    """Runtimes resize otherwise than torch does, or without antialiasing."""
    [candidate] = smaller_images(vit(depth=1).float(), [0.6])
    small, x = candidate.make(), torch.randn(2, 3, 28, 28)
    program = torch.export.export(small, (x,))
    assert "upsample" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), small(x), atol=1e-4, rtol=1e-4)
