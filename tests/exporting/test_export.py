"""Exports give the model's answers in their runtime, or nothing is kept."""

import functools
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import pictures, vitfold_
from support.models import hf, images
from support.rest import rest
from support.signals import has_signal_stack
from support.small import vit
from torch import Tensor, nn

import vitfold
from vitfold.cli import names
from vitfold.errors import (
    DataError,
    ExportError,
    FoldError,
    MissingExtra,
    UnsupportedModel,
    VitfoldError,
)
from vitfold.exporting import verify as verify_
from vitfold.exporting.export import steps
from vitfold.exporting.graph import Named
from vitfold.exporting.report import Corner, Report
from vitfold.exporting.serve import serve
from vitfold.exporting.targets import TARGETS, openvino
from vitfold.exporting.targets.base import Runner
from vitfold.segment import Segmenter
from vitfold.tools.intervals import interval
from vitfold.tools.measure import Throughput

WRITTEN = {
    "torch": {"model.pt2"},
    "onnx": {"model.onnx"},
    "openvino": {"model.xml", "model.bin"},
}
BESIDE = {"report.json", "preprocessor_config.json"}


def model(method: str | None = "tome", **options: Any) -> nn.Module:
    small = vit(depth=2).float()
    return small if method is None else vitfold.fold(small, method, **({"r": 4} | options))


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("target", WRITTEN)
def test_a_target_gives_the_models_answers(target: str, tmp_path: Path) -> None:
    folded, place = model(), tmp_path / "out"
    report = vitfold.export(folded, place, target=target, repeats=1)
    assert {file.name for file in place.iterdir()} == WRITTEN[target] | BESIDE
    run = TARGETS[target].open(place, report.outputs)
    assert report.outputs == ("logits",)
    for count in (1, 5):
        result = run(pixels(count))["logits"]
        torch.testing.assert_close(result, folded(pixels(count)), atol=1e-4, rtol=1e-4)
    told = json.loads((place / "report.json").read_text())
    assert [corner["name"] for corner in told["corners"]] == ["dense", "folded"]
    assert told["agreement"]["largest"] < 1e-3
    assert told["method"] == "ToMe(r=4)"
    assert set(told["corners"][1]["batch_sizes"]) == {"1", "8"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_number_of_images_is_kept_and_dense_models_are_written_too(tmp_path: Path) -> None:
    dense = model(None)
    report = vitfold.export(dense, tmp_path / "out", batch_size=3, repeats=1)
    assert [corner.name for corner in report.corners] == ["dense"]
    assert list(report.corners[0].times) == [3]
    run = TARGETS["onnx"].open(tmp_path / "out", report.outputs)
    torch.testing.assert_close(run(pixels(3))["logits"], dense(pixels(3)), atol=1e-4, rtol=1e-4)
    with pytest.raises(Exception, match="dim"):
        run(pixels(2))


def test_outputs_are_called_as_their_library_calls_them(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    clip = vitfold.fold(hf("CLIPVisionModelWithProjection"), "tome", r=3)
    report = vitfold.export(clip, tmp_path / "clip", repeats=1)
    assert {"image_embeds", "last_hidden_state"} <= set(report.outputs)
    run = TARGETS["onnx"].open(tmp_path / "clip", report.outputs)
    x = images(clip, 3)
    torch.testing.assert_close(run(x)["image_embeds"], clip(x).image_embeds, atol=1e-4, rtol=1e-4)
    processor = json.loads((tmp_path / "clip" / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": x.shape[2], "width": x.shape[3]}


def test_segmenters_and_embeddings_are_exported(tmp_path: Path) -> None:
    segmenter = vitfold.fold(
        Segmenter(vit(depth=2).float(), 3, "linear").float().eval(), "tome", r=4
    )
    report = vitfold.export(segmenter, tmp_path / "segmenter", target="torch", repeats=1)
    assert report.outputs == ("logits",)
    embedding = vitfold.fold(vit(num_classes=0).float(), "tome", r=4)
    report = vitfold.export(embedding, tmp_path / "embedding", target="onnx", repeats=1)
    assert report.outputs == ("embedding",)  # as lookups are called that merging is made of
    assert report.agreement.top1 is None
    labelled = {"images": pixels(2), "labels": torch.zeros(2), "repeats": 1}
    with pytest.raises(DataError, match="gives images no class"):
        vitfold.export(embedding, tmp_path / "none", target="torch", **labelled)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_eight_bits_in_four_corners(target: str, tmp_path: Path) -> None:
    folded, place = model(), tmp_path / "out"
    for package in TARGETS[target].quantizers:
        pytest.importorskip(package)
    with torch.no_grad():
        labels = folded(pixels(20)).argmax(dim=1)
        labels[:5] = (labels[:5] + 1) % 7
    options = {"images": pixels(20), "labels": labels, "int8": True, "repeats": 1}
    report = vitfold.export(folded, place, target=target, **options)
    corners = {corner.name: corner for corner in report.corners}
    assert list(corners) == ["dense", "folded", "dense INT8", "folded INT8"]
    run = TARGETS[target].open(place, report.outputs)
    expected, result = folded(pixels(4)), run(pixels(4))["logits"]
    assert float((result - expected).abs().max()) > 0
    assert torch.nn.functional.cosine_similarity(result, expected).min() > 0.9
    beside = corners["folded INT8"].fidelity
    assert beside is not None
    assert beside.images == 20
    assert beside.agreement is not None
    right = {name: corner.top1 for name, corner in corners.items()}
    assert right["folded"] == (0.75, *interval(15, 20))
    assert all(right.values())
    assert corners["dense"].to_json()["top1"]["mean"] == right["dense"].mean
    assert has_signal_stack()


@pytest.mark.parametrize(
    ("speedups", "words"),
    [
        ({"dense": 1.0, "folded": 1.2}, None),
        ({"dense": 1.0, "folded": 0.9}, r"slower than the model dense in X here .* 8 \(0.90x\)"),
        ({"dense": 1.0, "folded": 1.1, "dense INT8": 2.0, "folded INT8": 1.5}, "dense INT8 in X"),
        ({"dense": 1.0, "folded": 1.1, "dense INT8": 0.8, "folded INT8": 0.9}, "model dense in X"),
        ({"dense": 1.0, "dense INT8": 0.8}, "model dense in X"),
        ({"dense": 1.0}, None),
    ],
)
def test_a_report_names_the_dense_model_that_is_faster(
    speedups: dict[str, float], words: str | None
) -> None:
    """In the precision of what was written, or in float32."""
    time = Throughput(1.0, 1.0, 1.0, 1)
    corners = tuple(Corner(name, 1.0, {8: time}, {8: ratio}) for name, ratio in speedups.items())
    near = verify_.Agreement(1, 0.0, "an image", 0, None, 1.0)
    report = Report("x", "X", "ViT", None, None, ("logits",), near, corners, {}, {})
    if words is None:
        assert report.slower is None
    else:
        assert re.search(words, report.slower or "")


# What is not kept.


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is wrong by a little."""
    honest = TARGETS["torch"].open

    def open_(directory: Path, names: Sequence[str], threads: int | None = None) -> Runner:
        run = honest(directory, names, threads)
        return lambda x: {name: output + 0.1 for name, output in run(x).items()}

    monkeypatch.setattr(TARGETS["torch"], "open", open_)


def test_a_wrong_answer_is_an_error_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong(monkeypatch)
    with pytest.raises(ExportError, match=r"differs from eager by .* in 'logits' of image 0"):
        vitfold.export(model(), tmp_path / "out", target="torch", repeats=1)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_leaves_an_earlier_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vitfold.export(model(), tmp_path / "out", target="torch", repeats=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    wrong(monkeypatch)
    with pytest.raises(ExportError):
        vitfold.export(model(r=3), tmp_path / "out", target="torch", repeats=1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    monkeypatch.undo()
    vitfold.export(model(r=3), tmp_path / "out", target="torch", repeats=1)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["method"] == "ToMe(r=3)"


class Edge(nn.Module):
    """Answers by the sign of a mean that is zero but for rounding."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return (pixel_values.double().sum(dim=(1, 2, 3), keepdim=True) > 0).float().flatten(1)


def test_an_image_on_the_edge_is_no_error_where_eager_does_not_hold_either() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edge, self.weight = Edge(), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.edge(x)

    half = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    balanced = torch.cat([half, -half], dim=2)
    named = Named(Whole(), ("logits",))
    given = torch.stack([*(torch.ones(3, 4, 4) for _ in range(5)), balanced])

    def other(x: Tensor) -> dict[str, Tensor]:
        return {"logits": (x.double().sum(dim=(1, 2, 3)) >= 0).float().unsqueeze(1)}

    assert verify_.verify(named, other, given).undecided == 1
    flat = given.clone()
    flat[5] = 0  # eager holds to its answer here: noise of nothing is nothing
    with pytest.raises(ExportError, match="image 5"):
        verify_.verify(named, other, flat)
    with pytest.raises(ExportError, match="3 of 6"):
        verify_.verify(named, other, torch.cat([given[:3], balanced.expand(3, -1, -1, -1)]))


def test_what_an_export_does_not_write_over(tmp_path: Path) -> None:
    place = tmp_path / "out"
    vitfold.export(model(), place, target="torch", repeats=1)
    with pytest.raises(DataError, match="holds an export for 'torch'"):
        vitfold.export(model(), place, target="onnx", repeats=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letters.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        vitfold.export(model(), other, repeats=1)
    with pytest.raises(DataError, match="is a file"):
        vitfold.export(model(), other / "letters.txt", repeats=1)
    assert (other / "letters.txt").read_text() == "mine"


MISTAKES: list[tuple[dict[str, Any], type[VitfoldError], str]] = [
    ({"target": "openvin"}, UnsupportedModel, "did you mean 'openvino'"),
    ({"int8": True}, DataError, "takes its ranges from images"),
    ({"target": "torch", "int8": True, "images": pixels(2)}, UnsupportedModel, "no INT8"),
    ({"batch_size": 0}, DataError, "batch_size=0"),
    ({"images": pixels(2)[0]}, DataError, r"\[N, C, H, W\]"),
    ({"images": pixels(2)[:0]}, DataError, "there is none"),
    ({"batch_size": 8, "int8": True, "images": pixels(2)}, DataError, "fewer than a batch"),
    ({"labels": torch.zeros(2)}, DataError, "the class of each of the images"),
    ({"labels": torch.zeros(3), "images": pixels(2)}, DataError, "the class of each"),
    (
        {"labels": torch.tensor([0, 99]), "images": pixels(2), "target": "torch"},
        DataError,
        "label 99 in the dataset",
    ),
]


@pytest.mark.parametrize(("options", "error", "words"), MISTAKES)
def test_mistakes_are_one_line(
    options: dict[str, Any], error: type[VitfoldError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words) as raised:
        vitfold.export(model(), tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_not_exported_say_why(tmp_path: Path) -> None:
    with pytest.raises(FoldError, match=r"vitfold\.freeze"):
        vitfold.export(vitfold.fold(vit().float(), "ltmp"), tmp_path / "out")
    with pytest.raises(UnsupportedModel, match=r"model\.float\(\)"):
        vitfold.export(model().half(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "vitfold\[openvino\]"'):
        vitfold.export(model(), tmp_path / "out", target="openvino")


# Other ways.


@pytest.mark.parametrize(
    "method",
    [
        vitfold.LGTM(r=4, skip=0),
        vitfold.EViT(r=6, blocks=(0, 1)),
        *rest(vitfold.ToMe(r=4), vitfold.Ward(r=4), vitfold.Drop(r=4)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_openvino_converts_a_folded_model_itself(method: Any) -> None:
    library = pytest.importorskip("openvino")
    folded = vitfold.fold(vit(depth=2).float(), method)
    converted = library.convert_model(folded, example_input=pixels(2))
    run = library.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (2, 3):
        result = torch.from_numpy(run(pixels(count).numpy())[0].copy())
        torch.testing.assert_close(result, folded(pixels(count)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", *rest("openvino")])
def test_a_served_model_stands_for_the_model(runtime: str) -> None:
    folded = model()
    served = serve(folded, runtime)
    torch.testing.assert_close(served(pixels(3)), folded(pixels(3)), atol=1e-4, rtol=1e-4)
    with pytest.raises(UnsupportedModel, match="did you mean 'openvino'"):
        serve(folded, "openvin")


def test_however_many_models_are_compiled_each_is(monkeypatch: pytest.MonkeyPatch) -> None:
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        pytest.skip("this torch gives models of one class eight programs in all")
    programs: list[nn.Module] = []
    eager = functools.partial(torch.compile, backend=lambda p, _: programs.append(p) or p)
    monkeypatch.setattr(torch, "compile", eager)
    models = [nn.Sequential(nn.Linear(width, 1)) for width in range(1, 12)]
    for width, one in enumerate((serve(m, "compile") for m in models), start=1):
        one(torch.ones(2, width))
    assert len(programs) == len(models)


def test_names_are_those_of_targets() -> None:
    assert tuple(TARGETS) == names.TARGETS
    assert openvino.TARGET.name in TARGETS


# The command line.


def test_the_command_writes_and_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.json"
    arguments = ("export", "digits", "--method", "ward", "--flops", 0.7, "-o", out)
    options = ("--target", "torch", "--limit", 12, "--repeats", 1, "--results-file", rows)
    assert vitfold_(monkeypatch, *arguments, *options, "--labels") == 0
    told = capsys.readouterr().out
    assert "largest difference" in told
    assert f"in {TARGETS['torch'].runtime}" in told
    assert "beside the dense model" in told
    assert (out / "model.pt2").exists()
    kept = json.loads(rows.read_text())["rows"]
    assert [row["name"] for row in kept] == ["dense", "folded"]
    assert min(row["top1"]["mean"] for row in kept) > 0.8


def test_the_command_takes_photographs_and_refuses_what_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object) -> str:
        assert vitfold_(monkeypatch, "export", *arguments) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "--dense exports no fold" in told("digits", "--dense", "--r", 3, "-o", out)
    assert "did you mean 'openvino'" in told("digits", "--target", "openvin", "-o", out)
    assert "--data-dir" in told("test_vit", "--no-pretrained", "--int8", "-o", out)
    assert "--labels" in told("test_vit", "--no-pretrained", "--labels", "-o", out)
    assert not out.exists()
    photos = pictures(tmp_path / "photos")
    arguments = ("test_vit", "--no-pretrained", "--r", 4, "--data-dir", photos, "-o", out)
    assert vitfold_(monkeypatch, "export", *arguments, "--target", "torch", "--repeats", 1) == 0
    assert json.loads((out / "report.json").read_text())["corners"][1]["fidelity"]["images"] == 6


def test_progress_is_told_as_often_as_it_says(tmp_path: Path) -> None:
    calls: list[None] = []
    options = {"target": "torch", "repeats": 2, "progress": lambda: calls.append(None)}
    vitfold.export(model(), tmp_path / "out", **options)
    assert len(calls) == steps(model(), False, None, 2)
