"""What earlier versions saved: plans of schema 1, and models without a plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import models
from support.saving import output, put, refused, same, tiny

import vitfold
from vitfold.errors import PlanError
from vitfold.saving.models import create_model, dataset_of, save_model

REPOSITORY = Path(__file__).parents[2]


def as_schema_1(directory: Path) -> None:
    """Rewrite a plan as it was written before."""
    plan = json.loads((directory / "plan.json").read_text())
    model = plan["model"] | plan["model"].pop("trunk")
    for key in ("trunk", "dataset", "values"):
        model.pop(key, None)
    if model["source"] == "packaged":
        model["source"] = "digits"
    if plan["weights"]:
        del plan["weights"]["dtype"]
    (directory / "plan.json").write_text(json.dumps(plan | {"schema": 1, "model": model}))


@pytest.mark.parametrize("new", [tiny, lambda: models.hf("ViTModel")], ids=["timm", "hf"])
def test_plans_of_schema_1_load(new: Any, tmp_path: Path) -> None:
    model = vitfold.fold(new(), "tome", r=2)
    vitfold.save(model, tmp_path, backbone=True)
    as_schema_1(tmp_path)
    assert '"schema": 1' in (tmp_path / "plan.json").read_text()
    images = models.inputs(model)["pixel_values"] if new is not tiny else None
    assert same(model, vitfold.load(tmp_path), images)
    vitfold.save(vitfold.load(tmp_path), tmp_path, backbone=True)
    assert '"schema": 2' in (tmp_path / "plan.json").read_text()


@pytest.mark.parametrize("method", ["tome", "ltmp"])
@pytest.mark.parametrize("backbone", [False, True])
def test_plans_of_the_embedded_model_load(backbone: bool, method: str, tmp_path: Path) -> None:
    options = {"r": 8} if method == "tome" else {}
    model = vitfold.fold(create_model("digits", pretrained=True), method, **options)
    vitfold.save(model, tmp_path, backbone=backbone)
    as_schema_1(tmp_path)
    assert dataset_of(tmp_path) == "digits"
    assert same(model, vitfold.load(tmp_path))


def test_what_is_wrong_in_schema_1_is_named(tmp_path: Path) -> None:
    vitfold.save(vitfold.fold(tiny(), "tome", r=2), tmp_path, backbone=True)
    as_schema_1(tmp_path)
    good = (tmp_path / "plan.json").read_text()
    for path, value, text in (
        ("model/width", 33, "model.trunk.width=33: this VisionTransformer has 32"),
        ("model/prefix", ..., "model.trunk.prefix is missing"),
        ("model", 1, "model=1: expected an object"),
        ("weights", [], "weights=[]: expected an object"),
        ("model/extra", 1, "model.extra is unknown"),
    ):
        (tmp_path / "plan.json").write_text(good)
        put(tmp_path, path, value)
        assert text in refused(tmp_path)


def test_the_embedded_model_without_a_plan_comes_back(tmp_path: Path) -> None:
    model: Any = create_model("digits")
    new = {"source": "digits", "name": "digits", "arguments": {}}
    (tmp_path / "config.json").write_text(json.dumps(new))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = create_model(tmp_path)
    assert torch.equal(output(again.eval()), output(model.eval()))
    assert dataset_of(tmp_path) == dataset_of(again) == "digits"
    (tmp_path / "config.json").write_text(json.dumps(new | {"name": "numbers"}))
    with pytest.raises(PlanError, match=r"^config\.json: name='numbers'"):
        create_model(tmp_path)


@pytest.mark.parametrize("name", ["vit_cifar10_cpu_adamw", "vit_cifar10_cpu_sam"])
def test_models_of_timms_layout_become_plans(name: str, tmp_path: Path) -> None:
    model: Any = create_model(REPOSITORY / "models" / name).eval()
    assert model.num_classes == 10
    save_model(model, tmp_path)
    again: Any = create_model(tmp_path)
    assert torch.equal(output(again), output(model))
    for key in ("crop_pct", "interpolation", "tag"):
        assert again.pretrained_cfg[key] == model.pretrained_cfg[key]
    for key in ("mean", "std", "input_size"):
        assert list(again.pretrained_cfg[key]) == list(model.pretrained_cfg[key])
    assert again.patch_embed.img_size == (32, 32)
