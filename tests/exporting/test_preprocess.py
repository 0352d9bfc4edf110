"""OpenVINO's programs that take pictures give what Pillow, timm and eager torch make of these."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm.data
import torch
from PIL import Image
from support.cli import SMALL, vitfold_
from support.rest import rest
from support.small import vit
from torch import Tensor, nn

import vitfold
from vitfold.errors import ExportError, UnsupportedModel
from vitfold.exporting.inside import LEVELS, Pictures
from vitfold.exporting.pictures import WAYS, Preparation, preparation_of
from vitfold.exporting.targets import TARGETS
from vitfold.exporting.targets import openvino_pictures as pictures_
from vitfold.tools.wants import data_config

pytest.importorskip("openvino")


def model(**wants: Any) -> nn.Module:
    """A small model that wants its images so."""
    small = vit(depth=2).float()
    small.pretrained_cfg = {"interpolation": "bicubic", "crop_pct": 0.875} | wants
    return vitfold.fold(small, "tome", r=4)


def picture(width: int, height: int) -> Image.Image:
    seed = torch.Generator().manual_seed(width)
    few = torch.randint(256, (6, 6, 3), generator=seed, dtype=torch.uint8)
    return Image.fromarray(few.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def stored(*pictures: Image.Image) -> Tensor:
    return torch.stack(
        [torch.tensor(list(p.tobytes())).view(p.height, p.width, 3) for p in pictures]
    ).to(torch.uint8)


@pytest.mark.parametrize(
    "wants", [{}, *rest({"crop_mode": "squash"}, {"interpolation": "bilinear"})]
)
def test_pictures_of_any_size_go_in(wants: dict[str, Any], tmp_path: Path) -> None:
    folded = model(**wants)
    report = vitfold.export(folded, tmp_path / "out", target="openvino", preprocess=True, repeats=1)
    run = TARGETS["openvino"].open(tmp_path / "out", report.outputs)
    prepare: Any = timm.data.create_transform(**data_config(folded))
    for width, height in ((28, 28), (61, 40), (40, 90), (20, 25)):
        photo = picture(width, height)
        result = run(stored(photo, photo))["logits"]
        expected = folded(prepare(photo).unsqueeze(0)).expand(2, -1)
        assert torch.nn.functional.cosine_similarity(result, expected).min() > 0.99
    told = json.loads((tmp_path / "out" / "report.json").read_text())["preprocess"]
    assert told["takes"].startswith("uint8 [B, H, W, 3]")
    assert told["largest"] <= LEVELS
    assert told["agreement"]["largest"] < 1e-3


def test_without_it_the_report_says_none(tmp_path: Path) -> None:
    report = vitfold.export(model(), tmp_path / "out", target="torch", repeats=1)
    assert report.to_json()["preprocess"] is None


@pytest.mark.parametrize("batch_size", [3, *rest(None)])
def test_in_eight_bits_too(batch_size: int | None, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    images = torch.randn(9, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    report = vitfold.export(
        model(),
        tmp_path / "out",
        target="openvino",
        preprocess=True,
        int8=True,
        images=images,
        batch_size=batch_size,
        repeats=1,
    )
    run = TARGETS["openvino"].open(tmp_path / "out", report.outputs)
    assert run(stored(*[picture(50, 40)] * 3))["logits"].shape == (3, 7)
    assert b'element_type="u8"' in (tmp_path / "out" / "model.xml").read_bytes()
    assert report.preprocess is not None
    assert 0.99 < report.preprocess.cosine <= 1.0001


@pytest.mark.parametrize("interpolation", WAYS)
@pytest.mark.parametrize("keeps", [True, False])
def test_pixels_are_those_of_pillow(interpolation: str, keeps: bool) -> None:
    half = (0.5, 0.4, 0.3)
    preparation = Preparation((48, 48), 0.9, keeps, interpolation, half, half)
    pictures = Pictures(preparation, TARGETS["openvino"].preparing(preparation), None)
    pictures.check()
    soft = [
        apart for name, apart in zip(pictures.names, pictures.apart, strict=True) if "col" in name
    ]
    assert len(soft) == len(pictures.names) // 2
    assert max(float(apart.max()) for apart in soft) < 2.5


def test_another_way_of_resizing_is_an_error_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest = pictures_.interpolation
    monkeypatch.setattr(pictures_, "interpolation", lambda p: "linear_onnx" if honest(p) else "")
    with pytest.raises(ExportError, match=r"differs from Pillow's by \d+ of 255"):
        vitfold.export(model(), tmp_path / "out", target="openvino", preprocess=True, repeats=1)
    assert list(tmp_path.iterdir()) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"interpolation": "lanczos"},
        "interpolation lanczos, and a program takes bilinear or bicubic",
    ),
    ({"crop_mode": "border"}, "crop_mode border, and a program takes center or squash"),
]


@pytest.mark.parametrize(("wants", "words"), REFUSED)
def test_what_a_program_cannot_do_is_refused(wants: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words) as raised:
        preparation_of(model(**wants))
    assert "\n" not in str(raised.value)


def test_models_of_other_images_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="channels 1"):
        preparation_of(vit(in_chans=1))
    with pytest.raises(UnsupportedModel, match="only squares"):
        preparation_of(vit((7, 8)))
    segmenter = vitfold.segment.Segmenter(vit(depth=2).float(), 3, "linear")
    with pytest.raises(UnsupportedModel, match="a segmenter slides"):
        preparation_of(segmenter)


@pytest.mark.parametrize("target", ["torch", "aoti", "onnx"])
def test_other_targets_refuse(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("export", "digits", "--target", target, "--preprocess", "-o", tmp_path / "out")
    assert vitfold_(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert f"target {target!r} has no preprocessing in its program: give openvino" in told
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("export", *SMALL, "--target", "openvino")
    options = ("--preprocess", "--repeats", 1, "-o", tmp_path / "out")
    assert vitfold_(monkeypatch, *arguments, *options) == 0
    assert "a pixel beside Pillow's" in capsys.readouterr().out
