"""What comes back from a directory is what was saved, bit for bit."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import models, windowed
from support.compare import tensors
from support.hf_models import DEEP, SMALL, arguments_of, small
from support.rest import rest
from support.saving import refused, same, tiny

import vitfold
from vitfold.folding.families.hf import MODELS
from vitfold.methods import METHODS
from vitfold.methods.registry import from_json
from vitfold.saving.models import create_model
from vitfold.saving.sources import hf

TIMM = [
    "test_vit",
    "test_vit3",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch16_18x2_224",
    "vit_base_patch14_reg4_dinov2",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_base_patch16_rope_mixed_ape_224",
    "vit_base_patch16_sapiens2",
    "vit_srelpos_small_patch16_224",
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_gap-mrope",
]


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_come_back(name: str, tmp_path: Path) -> None:
    model = vitfold.fold(models.kind(name), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    loaded = vitfold.load(tmp_path)
    assert type(loaded) is type(model)
    assert same(model, loaded)
    assert not loaded.training


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 0},
        {"img_size": (48, 80)},
        {"in_chans": 1, "global_pool": "avg"},
        {"class_token": False, "global_pool": "map", "reg_tokens": 2},
        {"drop_rate": 0.1, "drop_path_rate": 0.2, "qk_norm": True, "init_values": 0.5},
        {"act_layer": "relu", "dynamic_img_size": True},
    ],
)
def test_arguments_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    model = vitfold.fold(tiny(**options), "tome", r=2)
    vitfold.save(model, tmp_path, backbone=True)
    loaded = vitfold.load(tmp_path)
    assert repr(loaded) == repr(model)
    assert same(model, loaded)


def test_what_was_changed_after_creation_comes_back(tmp_path: Path) -> None:
    model = tiny()
    model.reset_classifier(3, "avg")
    model.set_input_size((48, 48))
    vitfold.save(vitfold.fold(model.eval(), "tome", r=2), tmp_path, backbone=True)
    loaded: Any = vitfold.load(tmp_path)
    assert (loaded.num_classes, loaded.global_pool) == (3, "avg")
    assert same(model, loaded)


def classes() -> Iterator[Any]:
    """All that come back: by default those of the packages that go through every test, and the
    first class of every trunk."""
    first = {names[0] for names in MODELS.values()}
    for name in hf.CLASSES:
        always = name in first or any(name in names for names in DEEP.values())
        yield from [name] if always else rest(name)


def subject(name: str) -> tuple[Any, Any]:
    """A small model of a class, and what it is called with."""
    if name in windowed.TRUNKS | windowed.HOLDERS:
        model = windowed.windowed(name)
        return model, windowed.arguments_of(model)
    model = small(name) if name in SMALL else models.hf(name)
    return model, arguments_of(model) if name in SMALL else models.inputs(model)


@pytest.mark.parametrize("name", list(classes()))
def test_models_of_hugging_face_come_back(name: str, tmp_path: Path) -> None:
    new, arguments = subject(name)
    model = vitfold.fold(new, "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    loaded: Any = vitfold.load(tmp_path)
    assert type(loaded) is type(model)
    with torch.no_grad():
        torch.manual_seed(0)
        before = tensors(model(**arguments))
        torch.manual_seed(0)
        after = tensors(loaded(**arguments))
    assert before
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


def test_labels_and_the_way_to_attend_come_back(tmp_path: Path) -> None:
    labels = {0: "cat", 1: "dog", 2: "ox"}
    model = models.hf("ViTForImageClassification", id2label=labels, attn_implementation="eager")
    vitfold.save(vitfold.fold(model, "tome", r=3), tmp_path, backbone=True)
    loaded: Any = vitfold.load(tmp_path)
    assert loaded.config.id2label == labels
    assert loaded.config._attn_implementation == "eager"


def test_many_unnamed_labels_fit_in_a_plan(tmp_path: Path) -> None:
    model = models.hf("ViTForImageClassification", num_labels=21841)
    vitfold.save(vitfold.fold(model, "tome", r=3), tmp_path, backbone=True)
    loaded: Any = vitfold.load(tmp_path)
    assert loaded.config.num_labels == 21841


def test_a_checkpoint_of_hugging_face_comes_back_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()
    monkeypatch.chdir(tmp_path / "hub")
    model = models.hf("ViTModel")
    model.save_pretrained("group/tiny")
    model = vitfold.fold(type(model).from_pretrained("group/tiny"), "tome", r=3)
    monkeypatch.chdir(tmp_path)
    vitfold.save(model, tmp_path / "plan")
    assert "could not" not in refused(tmp_path / "plan")
    assert "pretrained weights cannot be had" in refused(tmp_path / "plan")
    monkeypatch.chdir(tmp_path / "hub")
    arguments = models.inputs(model)["pixel_values"]
    assert same(model, vitfold.load(tmp_path / "plan"), arguments)


@pytest.mark.parametrize("backbone", [False, True])
def test_the_embedded_model_comes_back(backbone: bool, tmp_path: Path) -> None:
    model = vitfold.fold(create_model("digits", pretrained=True), "lgtm", r=8)
    vitfold.save(model, tmp_path, backbone=backbone)
    data = json.loads((tmp_path / "plan.json").read_text())
    assert (data["model"]["source"], data["model"]["dataset"]) == ("packaged", "digits")
    assert same(model, vitfold.load(tmp_path))
    assert (tmp_path / "weights.safetensors").exists() == backbone


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "tome": [{"r": 13}, {"r": [0, 5, 2]}, {"r": (6, -1.0)}, {"r": (6, 1), "cue": "v"}],
    "tome-around": [{"r": 13}, {"r": [0, 5, 2], "skip": 1}],
    "dfe": [{"r": 5}, {"r": 5, "skip": 3}, {"flops": 0.8, "proportional": False}],
    "lgtm": [{"r": 9}, {"r": [4, 4], "window": 2, "location": "2d"}, {"flops": 0.7, "skip": 1}],
    "ward": [{"r": 5}, {"flops": 0.8}, {"flops": 0.8, "inflection": 0.25, "cue": "k"}],
    "pitome": [{"r": 5}, {"flops": 0.8, "cue": "x"}, {"r": 3, "skip": 1}],
    "mctf": [{"r": 5}, {"flops": 0.8, "cue": "k", "seed": 3}],
    "diffrate": [{"r": 5}, {"flops": 0.8, "dropped": 0.25}],
    "ltmp": [{}, {"flops": 0.7, "prune": False}, {"order": "prune_first", "merge_threshold": 0.6}],
    "mergedrop": [{"r": 5, "drop": 2}, {"r": [3, 0, 2], "drop": [0, 4], "drop_first": True}],
    "prune-merge": [{"blocks": [0, 1], "grid": [8, 8], "scores": [[0.5, 2] * 32, [1, 0.25] * 32]}],
    "evit": [{"r": 6}, {"flops": 0.8}, {"r": [0, 5], "blocks": [1], "fuse": False}],
    "dynamicvit": [{"r": 6}, {"flops": 0.9, "blocks": [0, 1], "strength": 1.5}],
    "avit": [{}, {"flops": 0.7, "gamma": 4.0, "beta": -9.0, "eps": 0.02, "depth": 1.5}],
    "wardcut": [{"flops": 0.7}, {"flops": 0.5, "inflection": 0.0, "cue": "k"}],
    "fisher": [{"r": 5}, {"flops": 0.8, "skip": 1}],
    "fishercut": [{"flops": 0.7}, {"flops": 0.5, "inflection": 0.0}],
    "runlength": [],  # of clips: tests/methods/test_runlength.py
    "drop": [{"r": 5}, {"r": (4, 0.5), "cue": "random", "seed": 7}, {"flops": 0.75}],
}

CASES = [(name, options) for name in METHODS for options in OPTIONS[name]]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_methods_come_back(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vitfold.fold(tiny(img_size=128), name, **options)
    vitfold.save(model, tmp_path, backbone=True)

    def solve(*_: Any) -> None:
        raise AssertionError("a plan is resolved already")

    monkeypatch.setattr("vitfold.folding.schedules.fit_schedule", solve)
    assert same(model, vitfold.load(tmp_path))


def test_images_are_prepared_as_before(tmp_path: Path) -> None:
    overlay = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0}
    model = tiny(pretrained_cfg_overlay=overlay | {"interpolation": "bilinear"})
    vitfold.save(vitfold.fold(model, "tome", r=2), tmp_path, backbone=True)
    config = vitfold.load(tmp_path).pretrained_cfg
    for key, value in overlay.items():
        assert config[key] == (list(value) if isinstance(value, tuple) else value)
    assert config["interpolation"] == "bilinear"
    vitfold.save(vitfold.fold(tiny(), "tome", r=2), tmp_path)
    assert "pretrained_cfg_overlay" not in (tmp_path / "plan.json").read_text()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_methods_survive_json(name: str, options: dict[str, Any]) -> None:
    method = METHODS[name](**options)
    again = from_json(json.loads(json.dumps(method.to_json())))
    assert again == method
    assert type(getattr(again, "r", None)) is type(getattr(method, "r", None))


def test_a_ramp_is_no_list_in_json() -> None:
    assert vitfold.ToMe((13, -1.0)).to_json()["r"] == {"r": 13, "inflection": -1.0}
    assert vitfold.ToMe([13, 1]).to_json()["r"] == [13, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_saved_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    model = vitfold.fold(models.kind("eva02_tiny_patch14_224").to(dtype), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    loaded = vitfold.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    buffers = dict(model.named_buffers())
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    if dtype is not torch.float16:  # not all of which the CPU computes
        assert same(model, loaded)


def test_mixed_precision_comes_back(tmp_path: Path) -> None:
    model = tiny().bfloat16()
    model.norm.float()
    vitfold.save(vitfold.fold(model, "tome", r=2), tmp_path, backbone=True)
    loaded: Any = vitfold.load(tmp_path)
    assert loaded.norm.weight.dtype == torch.float32
    assert loaded.cls_token.dtype == torch.bfloat16


def test_tables_keep_their_own_precision(tmp_path: Path) -> None:
    model = models.hf("DINOv3ViTModel")
    table = model.rope_embeddings
    model.bfloat16()
    table.inv_freq = table.inv_freq.float()
    vitfold.save(vitfold.fold(model, "tome", r=2), tmp_path, backbone=True)
    loaded: Any = vitfold.load(tmp_path)
    assert loaded.rope_embeddings.inv_freq.dtype == torch.float32
    assert loaded.dtype == torch.bfloat16


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = tiny()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    vitfold.fold(model, "tome", r=2)
    vitfold.save(model, tmp_path, backbone=True)
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert same(model, vitfold.load(tmp_path, copy.deepcopy(model)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_on_a_gpu_are_saved(tmp_path: Path) -> None:
    model = vitfold.fold(tiny().cuda(), "tome", r=2)
    vitfold.save(model, tmp_path, backbone=True)
    assert same(model.cpu(), vitfold.load(tmp_path))
