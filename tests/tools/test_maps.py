"""Maps of pixels: how near folded ones are to dense ones, and how both are drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.cli import vitfold_
from support.hf_hosts import host
from support.hf_models import small
from support.windowed import windowed
from torch import Tensor

import vitfold
from vitfold.folding.families import find
from vitfold.tools.fidelity import compared, losses
from vitfold.tools.looks import Look, look
from vitfold.tools.maps import beside
from vitfold.tools.overlap import iou, relative

pytest.importorskip("transformers")


def images(model: Any, number: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, *find(model).size, generator=generator)


def folded(model: Any) -> Any:
    return vitfold.fold(model.eval(), "tome", r=3)


def test_relative_differences_of_depth() -> None:
    dense = torch.tensor([[[1.0, 2.0], [4.0, 8.0]], [[1.0, 0.0], [1.0, 2.0]]])
    ours = torch.tensor([[[1.5, 2.0], [3.0, 8.0]], [[1.0, 0.01], [1.0, 2.0]]])
    first, second = relative(ours, dense).tolist()
    assert first == pytest.approx((0.5 + 0 + 0.25 + 0) / 4)
    assert second == pytest.approx(1 / 4), "of zero nothing is a share: of a hundredth of the mean"
    assert relative(dense, dense).tolist() == [0, 0]


def test_intersections_of_masks() -> None:
    dense = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    ours = dense.clone()
    dense[0, 0, 0], ours[0, 0, :, 0] = True, True  # one pixel of three
    dense[0, 1], ours[0, 1] = True, True
    assert iou(ours, dense).tolist() == pytest.approx([(1 / 3 + 1) / 2, 1])


def test_intersections_of_classes() -> None:
    dense = torch.tensor([[[0, 0], [2, 2]], [[1, 1], [1, 1]]])
    ours = torch.tensor([[[0, 0], [2, 3]], [[1, 1], [1, 1]]])
    assert iou(ours, dense).tolist() == pytest.approx([(1 + 1 / 2 + 0) / 3, 1])


DEPTHS = ("DepthAnythingForDepthEstimation", "ZoeDepthForDepthEstimation", "DPTForDepthEstimation")


@pytest.mark.parametrize("name", DEPTHS)
def test_fidelity_of_depth(name: str) -> None:
    model = folded(small(name) if name.startswith("DPT") else host(name))
    x = images(model)
    report = vitfold.fidelity(model, x)
    with torch.no_grad():
        ours, dense = model(x).predicted_depth, vitfold.unfold(model)(x).predicted_depth
    assert report.abs_rel is not None
    assert report.abs_rel.mean == pytest.approx(float(relative(ours, dense).mean()), rel=1e-4)
    assert report.abs_rel.mean > 0
    assert (report.iou, report.agreement) == (None, None)
    assert [row[0] for row in report.rows() if "depth" in row[0]] == [
        "relative difference of depth"
    ]
    assert vitfold.Fidelity.of_json(report.to_json()) == report


def test_fidelity_of_masks() -> None:
    model = folded(windowed("SamModel"))
    x = images(model, 2)
    report = vitfold.fidelity(model, x)
    with torch.no_grad():
        ours = model(x).pred_masks.flatten(1, -3) > 0
        dense = vitfold.unfold(model)(x).pred_masks.flatten(1, -3) > 0
    assert report.iou is not None
    assert report.iou.mean == pytest.approx(float(iou(ours, dense).mean()))
    assert 0 < report.iou.mean < 1


@pytest.mark.parametrize("name", ["EomtForUniversalSegmentation", "DPTForSemanticSegmentation"])
def test_fidelity_of_classes_of_pixels(name: str) -> None:
    model = folded(small(name))
    report = vitfold.fidelity(model, images(model))
    assert report.iou is not None
    assert report.agreement is not None
    assert 0 < report.iou.mean < 1
    assert report.iou.mean <= report.agreement.mean
    assert report.abs_rel is None


def test_what_is_lost_goes_by_maps() -> None:
    model = folded(host(DEPTHS[0]))
    x = images(model)
    with torch.no_grad():
        ours, dense = look(model, x), look(vitfold.unfold(model), x)
    loss = losses(compared(ours, dense))
    torch.testing.assert_close(loss**2, compared(ours, dense)["abs_rel"])
    masks = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    assert losses(compared(Look(masks=masks), Look(masks=masks))).tolist() == [0, 0]


@pytest.mark.parametrize("name", [DEPTHS[0], "EomtForUniversalSegmentation", "SamModel"])
def test_maps_are_drawn_dense_beside_folded(name: str) -> None:
    make = {"SamModel": windowed, DEPTHS[0]: host}.get(name, small)
    model = folded(make(name))
    x = images(model, 2)
    photographs = [Image.new("RGB", (40, 30), "red")] * 2
    drawn = beside(model, x, photographs)
    assert len(drawn) == 2
    assert drawn[0].width > 3 * drawn[0].height
    assert vitfold.folded(model) is not None
    width = (drawn[0].width - 18) // 4
    left, right = (drawn[0].crop((at, 20, at + width, 200)) for at in (width + 6, 2 * width + 12))
    assert left.tobytes() != right.tobytes(), "the folded map is another"
    same = beside(vitfold.fold(model, "tome", r=0), x, photographs)[0]
    left, right = (same.crop((at, 20, at + width, 200)) for at in (width + 6, 2 * width + 12))
    assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("name", ["ViTMSNModel", "VitPoseForPoseEstimation"])
def test_what_makes_no_maps_draws_none(name: str) -> None:
    model = folded(small(name))
    assert beside(model, images(model, 1), [Image.new("RGB", (40, 30))]) == []


def test_the_command_draws_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host(DEPTHS[0]).save_pretrained(tmp_path / "depth")
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "p.png")
    out = tmp_path / "out"
    arguments = ["trace", tmp_path / "depth", tmp_path / "p.png", "--method", "tome", "--r", "3"]
    assert vitfold_(monkeypatch, *arguments, "-o", out) == 0
    assert {p.name for p in out.iterdir()} == {"p-tokens.png", "p-blocks.png", "p-map.png"}
