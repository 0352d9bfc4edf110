"""Saved plans: what comes back is what was saved, and whatever is wrong is refused by name."""

import copy
import json
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support import models, small
from torch import Tensor, nn

import vitfold
from vitfold.data.digits import create_digits
from vitfold.errors import FoldError, PlanError, UnsupportedModel
from vitfold.folding.calls import fold_of, folds
from vitfold.methods import METHODS
from vitfold.methods.base import from_json
from vitfold.saving import store
from vitfold.saving.schema import Plan, decode, encode
from vitfold.saving.sources import hf
from vitfold.saving.subject import describe

DEPTH = 4


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches for the network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def tiny(**options: Any) -> Any:
    """A model of timm's, small, by name."""
    settings = {"depth": DEPTH, "img_size": 64, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    return models.registered("test_vit", **(settings | options))


def output(model: Any, given: Any = None) -> Tensor:
    with torch.no_grad():
        out = model(models.images(model) if given is None else given)
    return out if isinstance(out, Tensor) else out[0]


def same(one: nn.Module, other: nn.Module, given: Any = None) -> bool:
    """The same, bit for bit: outputs, state, and how it is folded."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    state = all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)
    first, second = fold_of(one), fold_of(other)
    fold = (first.method, first.schedule) == (second.method, second.schedule)
    return state and fold and torch.equal(output(one, given), output(other, given))


def refused(directory: Path, *arguments: Any) -> str:
    """What the error says, on its one line."""
    with pytest.raises(PlanError) as caught:
        vitfold.load(directory, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# What comes back


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


@pytest.mark.parametrize("name", hf.CLASSES)
def test_models_of_hugging_face_come_back(name: str, tmp_path: Path) -> None:
    model = vitfold.fold(models.hf(name), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    loaded = vitfold.load(tmp_path)
    assert type(loaded) is type(model)
    given = models.inputs(model)
    with torch.no_grad():
        pairs = zip(model(**given).to_tuple(), loaded(**given).to_tuple(), strict=True)
    for one, other in pairs:
        assert not isinstance(one, Tensor) or torch.equal(one, other)


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
    given = models.inputs(model)["pixel_values"]
    assert same(model, vitfold.load(tmp_path / "plan"), given)


@pytest.mark.parametrize("backbone", [False, True])
def test_the_embedded_model_comes_back(backbone: bool, tmp_path: Path) -> None:
    model = vitfold.fold(create_digits(), "lgtm", r=8)
    vitfold.save(model, tmp_path, backbone=backbone)
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["model"]["source"] == "digits"
    assert same(model, vitfold.load(tmp_path))
    assert (tmp_path / "weights.safetensors").exists() == backbone


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "tome": [{"r": 13}, {"r": [0, 5, 2]}, {"r": (6, -1.0)}, {"r": (6, 1), "cue": "v"}],
    "dfe": [{"r": 5}, {"r": 5, "skip": 3}, {"flops": 0.8, "proportional": False}],
    "lgtm": [{"r": 9}, {"r": [4, 4], "window": 2, "location": "2d"}, {"flops": 0.7, "skip": 1}],
    "ward": [{"r": 5}, {"flops": 0.8}, {"flops": 0.8, "inflection": 0.25, "cue": "k"}],
    "ltmp": [{}, {"flops": 0.7, "prune": False}, {"order": "prune_first", "merge_threshold": 0.6}],
    "mergedrop": [{"r": 5, "drop": 2}, {"r": [3, 0, 2], "drop": [0, 4], "drop_first": True}],
    "prune-merge": [{"blocks": [0, 1], "grid": [8, 8], "scores": [[0.5, 2] * 32, [1, 0.25] * 32]}],
    "evit": [{"r": 6}, {"flops": 0.8}, {"r": [0, 5], "blocks": [1], "fuse": False}],
    "dynamicvit": [{"r": 6}, {"flops": 0.9, "blocks": [0, 1], "strength": 1.5}],
    "avit": [{}, {"flops": 0.7, "gamma": 4.0, "beta": -9.0, "eps": 0.02, "depth": 1.5}],
    "wardcut": [{"flops": 0.7}, {"flops": 0.5, "inflection": 0.0, "cue": "k"}],
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

    monkeypatch.setattr(sys.modules["vitfold.fold"], "solve", solve)
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


# Loading onto a model that is given


def test_a_given_model_is_folded_in_place(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "lgtm", flops=0.8)
    vitfold.save(model, tmp_path)
    assert os.listdir(tmp_path) == ["plan.json"]
    other = tiny().train()
    assert vitfold.load(tmp_path, other) is other
    assert other.training
    assert same(model, other.eval())


def test_a_given_model_gets_the_saved_weights(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=2)
    vitfold.save(model, tmp_path, backbone=True)
    other = vitfold.fold(models.scatter(tiny(), seed=5), "drop", r=1)
    assert same(model, vitfold.load(tmp_path, other))


def test_a_model_without_a_name_needs_itself(tmp_path: Path) -> None:
    model = vitfold.fold(small.vit(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    assert "model.source='other'" in refused(tmp_path)
    assert "vitfold.load(directory, model)" in refused(tmp_path)
    loaded = vitfold.load(tmp_path, small.spread(small.vit(), seed=9))
    assert same(model, loaded, small.images(model, dtype=torch.float32))


def test_a_head_of_ones_own_is_not_lost(tmp_path: Path) -> None:
    model = tiny()
    model.head = nn.Sequential(nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 2))
    vitfold.save(vitfold.fold(model, "tome", r=2), tmp_path, backbone=True)
    assert "model.source='other'" in refused(tmp_path)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.head[0].weight)
    assert same(model, vitfold.load(tmp_path, other))


Change = Callable[[], Any]

OTHERS: dict[str, tuple[Change, str]] = {
    "depth": (lambda: tiny(depth=5), "plan.json: model.depth=4: this VisionTransformer has 5"),
    "width": (lambda: tiny(embed_dim=64), "plan.json: model.width=32: this "),
    "prefix": (lambda: tiny(reg_tokens=2), "plan.json: model.prefix=1: this "),
    "source": (
        lambda: models.hf("ViTModel", num_hidden_layers=DEPTH),
        "plan.json: model.source='timm': this model is of transformers",
    ),
    "name": (
        lambda: models.registered("vit_tiny_patch16_224", DEPTH, embed_dim=32, num_heads=2),
        "plan.json: model.name='test_vit.r160_in1k': this model is vit_tiny_patch16_224",
    ),
    "schedule": (lambda: tiny(img_size=16), "plan.json: schedule[0]=3: expected 0 to 1"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_is_refused_and_untouched(what: str, tmp_path: Path) -> None:
    create, expected = OTHERS[what]
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path)
    for model in (create(), vitfold.fold(create(), "drop", r=0)):
        before = [(record.method, record.schedule) for record in folds(model)]
        state = copy.deepcopy(model.state_dict())
        assert expected in refused(tmp_path, model)
        assert [(record.method, record.schedule) for record in folds(model)] == before
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_weights_of_another_shape_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path, backbone=True)
    model = models.scatter(tiny(num_classes=6), seed=4)
    state = copy.deepcopy(model.state_dict())
    message = refused(tmp_path, model)
    assert "weights.safetensors: head.weight has shape [5, 32]: expected [6, 32]" in message
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not folds(model)
    assert "has dtype float32: expected float16" in refused(tmp_path, tiny().half())


def test_other_weights_of_the_same_architecture_are_welcome(tmp_path: Path) -> None:
    model = tiny()
    model.pretrained_cfg = model.pretrained_cfg | {"tag": "another"}
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path)
    assert fold_of(vitfold.load(tmp_path, model)).schedule == (3,) * DEPTH


def test_what_cannot_be_folded_is_said_as_ever(tmp_path: Path) -> None:
    with pytest.raises(FoldError, match="not folded"):
        vitfold.save(tiny(), tmp_path)
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path)
    with pytest.raises(UnsupportedModel):
        vitfold.load(tmp_path, nn.Linear(2, 2))


# Pretrained weights


def test_weights_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path)
    message = refused(tmp_path)
    assert "model.name='test_vit.r160_in1k': its pretrained weights cannot be had" in message
    assert "vitfold.load(directory, model), or save it with backbone=True" in message


def test_pretrained_weights_are_taken_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path)
    create = timm.create_model

    def fetch(name: str, pretrained: bool = False, **options: Any) -> Any:
        made = create(name, **options)
        return models.scatter(made) if pretrained else made

    monkeypatch.setattr(timm, "create_model", fetch)
    assert same(model, vitfold.load(tmp_path))


def test_weights_that_are_not_the_pretrained_ones_are_not_replaced_by_them(tmp_path: Path) -> None:
    model = create_digits()
    with torch.no_grad():
        model.norm.bias += 1e-6
    vitfold.save(vitfold.fold(model, "tome", r=3), tmp_path)
    message = refused(tmp_path)
    assert "model.fingerprint" in message
    assert "backbone=True" in message


# Saving


def test_the_plan_has_indices_and_no_paths(tmp_path: Path) -> None:
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path, backbone=True)
    text = (tmp_path / "plan.json").read_text()
    assert "blocks" not in text
    data = json.loads(text)
    assert data["schema"] == 1
    assert data["schedule"] == [3, 3, 3, 3]
    assert data["versions"]["timm"] == timm.__version__
    assert data["weights"] == {"file": "weights.safetensors", "backbone": True}


def test_saving_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    before = torch.get_rng_state()
    vitfold.save(model, tmp_path, backbone=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_of_weights_is_the_state_dict(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    tiny().load_state_dict(load_file(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("backbone", [False, True])
def test_saving_twice_gives_the_same_bytes(backbone: bool, tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    contents = []
    for directory in (tmp_path / "a", tmp_path / "a", tmp_path / "b" / "c"):
        vitfold.save(model, directory, backbone=backbone)
        contents.append({file.name: file.read_bytes() for file in directory.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert set(contents[0]) == {"plan.json"} | ({"weights.safetensors"} if backbone else set())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("call", range(4))
def test_a_plan_is_there_at_every_moment(
    call: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = vitfold.fold(tiny(), "tome", r=3)
    new = vitfold.fold(models.scatter(tiny(), seed=8), "drop", r=2)
    vitfold.save(old, tmp_path, backbone=True)
    replace, calls = os.replace, []

    def kill(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) > call:
            raise error("killed")
        replace(*paths)

    monkeypatch.setattr(os, "replace", kill)
    if call >= 2 and error is OSError:  # the new plan is there: what is left is its usual name
        vitfold.save(new, tmp_path, backbone=True)
    else:
        with pytest.raises(PlanError if error is OSError else error):
            vitfold.save(new, tmp_path, backbone=True)
    monkeypatch.undo()
    assert same(old if call < 2 else new, vitfold.load(tmp_path))
    vitfold.save(new, tmp_path, backbone=True)
    assert same(new, vitfold.load(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "weights.safetensors"]


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_disk_that_is_full_loses_nothing(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)

    def fail(*_: Any, **__: Any) -> None:
        raise error("No space left on device")

    monkeypatch.setattr("vitfold.plan.weights.save_file", fail)
    with pytest.raises(PlanError, match=r"cannot be written: .*No space left"):
        vitfold.save(vitfold.fold(tiny(), "drop", r=1), tmp_path, backbone=True)
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "weights.safetensors"]
    assert same(model, vitfold.load(tmp_path))


def test_without_links_the_new_plan_has_the_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", fail)
    model = vitfold.fold(tiny(), "tome", r=3)
    for files in (store.WEIGHTS, store.SPARE, store.WEIGHTS):
        vitfold.save(model, tmp_path, backbone=True)
        assert sorted(os.listdir(tmp_path)) == ["plan.json", files]
        assert same(model, vitfold.load(tmp_path))


def test_weights_that_no_plan_names_any_more_go(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), "tome", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    vitfold.save(model, tmp_path)
    assert os.listdir(tmp_path) == ["plan.json"]
    (tmp_path / "weights.safetensors").write_bytes(b"of somebody else")
    vitfold.save(model, tmp_path)
    assert len(os.listdir(tmp_path)) == 2


def test_what_a_plan_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    model = vitfold.fold(tiny(), vitfold.ToMe(2, seed=2**60))
    with pytest.raises(PlanError, match=r"method\.seed="):
        vitfold.save(model, tmp_path)
    assert not os.listdir(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="file cannot be written"):
        vitfold.save(vitfold.fold(tiny(), "tome", r=3), tmp_path / "file")


# What is refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is only read."""
    directory = tmp_path_factory.mktemp("saved")
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), directory, backbone=True)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def put(directory: Path, path: str, value: Any) -> None:
    """Change one value of the plan; `...` takes it out."""
    data = json.loads((directory / "plan.json").read_text())
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place: Any = data
    for key in parents:
        place = place[key]
    place[last] = value
    if value is ...:
        del place[last]
    (directory / "plan.json").write_text(json.dumps(data))


WRONG: list[tuple[str, Any, str]] = [
    ("schema", 2, "schema=2: expected 1"),
    ("schema", True, "schema=True: expected 1"),
    ("schema", 1.0, "schema=1.0: expected 1"),
    ("schema", ..., "schema is missing"),
    ("extra", 1, "extra is unknown"),
    ("shedule", [], "shedule is unknown (did you mean 'schedule'?)"),
    ("model", ..., "model is missing"),
    ("model", [], "model=[]: expected an object"),
    ("model/source", "torch.hub", "model.source='torch.hub': expected one of timm"),
    ("model/name", "os.system", "model.name='os.system': timm has no such model"),
    ("model/name", "test_vit.zzz", "model.name='test_vit.zzz': timm has no such model"),
    ("model/name", "hf-hub:a/b", "model.name='hf-hub:a/b': expected the name of a timm model"),
    ("model/name", "resnet18", "model."),
    ("model/name", 3, "model.name=3: expected"),
    ("model/arguments/pretrained_cfg", {"file": "x"}, "model.arguments.pretrained_cfg is unknown"),
    ("model/arguments/checkpoint_path", "/x", "model.arguments.checkpoint_path is unknown"),
    ("model/arguments/img_size", "x", "model.arguments.img_size='x': expected an int"),
    ("model/arguments/img_size", [32, 0], "model.arguments.img_size=0: expected an int"),
    ("model/arguments/img_size", [32] * 3, "model.arguments.img_size="),
    ("model/arguments/embed_dim", 1e9, "model.arguments.embed_dim=1000000000.0: expected an int"),
    ("model/arguments/depth", 10**9, "model.arguments.depth=1000000000: expected an int from 1"),
    ("model/arguments/num_heads", 5, "model.arguments do not make a test_vit"),
    ("model/arguments/img_size", 48, "weights.safetensors: pos_embed has shape"),
    ("model/arguments/global_pool", "nope", "model.arguments do not make a test_vit"),
    ("model/arguments/qkv_bias", 1, "model.arguments.qkv_bias=1: expected true or false"),
    ("model/depth", 5, "schedule has 4 numbers: expected model.depth=5"),
    ("model/width", 33, "model.width=33: this VisionTransformer has 32"),
    ("model/width", 0, "model.width=0: expected an int from 1"),
    ("model/prefix", True, "model.prefix=True: expected an int"),
    ("model/dtype", "load", "model.dtype='load': expected one of float32"),
    ("model/fingerprint", "0" * 64, "weights.safetensors: its values are not those of model."),
    ("model/fingerprint", "0", "model.fingerprint='0': expected 64 hex digits"),
    ("method", "tome", "method: 'tome': expected an object"),
    ("method/name", "tomme", "method: unknown method 'tomme' (did you mean 'tome'?)"),
    ("method/name", ["tome"], "method: unknown method ['tome']"),
    ("method/r", -1, "method: r=-1: expected 0 or more"),
    ("method/r", 3000, "r=3000: of 16 patch tokens at most 8 can leave a block"),
    ("method/r", 5, "schedule=[3, 3, 3, 3]: ToMe(r=5) gives [5, 5, 5, 5]"),
    ("method/r", [1] * 9, "r has 9 numbers, the model 4 blocks"),
    ("method/r", 1.5, "method: r=1.5: expected an int, got float"),
    ("method/r", [1, "2"], "method: r[1]='2': expected an int, got str"),
    ("method/r", None, "method: r=None: expected a value"),
    ("method/r", {"r": 1}, "method: r={'r': 1}: expected an int, a list, or r and inflection"),
    ("method/r", {"r": 1, "inflection": 2}, "method: inflection=2: expected a number from -1"),
    ("method/flops", 0.5, "method: ToMe takes r or flops, got both"),
    ("method/cue", "K", "method: unknown cue 'K'"),
    ("method/skip", 9, "skip=9 is more than the 4 blocks"),
    ("method/window", 9, "method: ToMe has no option 'window'"),
    ("schedule", 3, "schedule=3: expected a list"),
    ("schedule", [3, 3, 3], "schedule has 3 numbers: expected model.depth=4"),
    ("schedule/3", -1, "schedule[3]=-1: expected an int from 0 to"),
    ("schedule/3", 2.0, "schedule[3]=2.0: expected an int from 0 to"),
    ("schedule/3", False, "schedule[3]=False: expected an int from 0 to"),
    ("schedule/3", 2**60, f"schedule[3]={2**60}: expected a number from"),
    ("schedule/3", 17, "schedule[3]=17: expected 0 to 16, the patch tokens"),
    ("schedule/3", 9, "schedule=[3, 3, 3, 9]: ToMe(r=3) gives [3, 3, 3, 3]"),
    ("weights", "weights.safetensors", "weights='weights.safetensors': expected an object"),
    ("weights/file", "../weights.safetensors", "weights.file='../weights.safetensors': expected"),
    ("weights/file", "a/b.safetensors", "weights.file='a/b.safetensors': expected a plain"),
    ("weights/file", "a\\b.safetensors", "weights.file="),
    ("weights/file", "..safetensors", "weights.file='..safetensors': expected a plain"),
    ("weights/file", "plan.json", "weights.file='plan.json': expected a plain"),
    ("weights/file", "weights.safetensors\n", "weights.file="),
    ("weights/file", "none.safetensors", "weights.file='none.safetensors': no such file"),
    ("weights/backbone", 1, "weights.backbone=1: expected true or false"),
    ("weights/backbone", False, "weights.safetensors: "),
    ("versions", {"numpy": "2"}, "versions.numpy is unknown"),
    ("versions/torch", 2.1, "versions.torch=2.1: expected a version"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
def test_wrong_values_are_named(copied: Path, path: str, value: Any, expected: str) -> None:
    put(copied, path, value)
    message = refused(copied)
    assert expected in message
    assert message.startswith(("plan.json: ", "weights.safetensors: "))


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "no object": (b"[1]", "the plan=[1]: expected an object with schema, model"),
    "cut off": (b'{"schema": 1, "model"', "not JSON"),
    "no UTF-8": (b'{"schema": "\xff"}', "not JSON"),
    "NaN": (b'{"schema": NaN}', "NaN: expected a finite number"),
    "infinity": (b'{"schema": [-Infinity]}', "-Infinity: expected a finite number"),
    "a number beyond floats": (b'{"schema": 1e999}', "1e999: expected a finite number"),
    "a number with 5,000 digits": (b'{"schema": ' + b"9" * 5000 + b"}", "not JSON"),
    "a key twice": (b'{"schema": 1, "a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
    "lists in lists": (b"[" * 30 + b"]" * 30, "nested more than 12 deep"),
    "lists without end": (b"[" * 500_000 + b"]" * 500_000, "nested more than 12 deep"),
    "objects without end": (b'{"a":' * 100_000, "plan.json: "),
    "a pickle": (pickle.dumps({"schema": 1}), "not JSON"),
    "2 MB": (b" " * 2**21, "2097152 bytes: expected at most 1048576"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_plans_are_named(copied: Path, what: str) -> None:
    data, expected = BROKEN[what]
    (copied / "plan.json").write_bytes(data)
    assert expected in refused(copied)


def test_a_plan_of_100_mb_is_not_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (copied / "plan.json").open("wb") as file:
        file.truncate(100 * 2**20)
    monkeypatch.setattr(Path, "open", None)
    assert refused(copied) == "plan.json: 104857600 bytes: expected at most 1048576"


def test_no_plan_is_named(tmp_path: Path) -> None:
    assert "is no directory: give a directory that vitfold.save" in refused(tmp_path / "none")
    assert "has no plan.json" in refused(tmp_path)
    (tmp_path / "plan.json").mkdir()
    assert "is not a file" in refused(tmp_path)
    assert "cannot be read" in refused(Path("a\0b"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    assert "is not a file" in refused(tmp_path)


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self) -> Any:
        return (os.abort, ())


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb()))


def header(path: Path, text: bytes, size: int | None = None) -> None:
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not a safetensors file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "not a safetensors file"),
    "torch.save": (lambda path: torch.save({"a": torch.ones(1)}, path), "not a safetensors file"),
    "a zip": (archive, "not a safetensors file"),
    "a long header": (lambda path: header(path, b"{}", 2**40), "bytes: expected at most 8388608"),
    "a header beyond": (lambda path: header(path, b"{}", 999), "cannot be read as safetensors"),
    "a broken header": (lambda path: header(path, b"{nope}"), "cannot be read as safetensors"),
    "places beyond": (
        lambda path: header(path, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        "cannot be read as safetensors",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
}


@pytest.mark.parametrize("what", FILES)
def test_broken_weights_are_named(copied: Path, what: str) -> None:
    change, expected = FILES[what]
    change(copied / "weights.safetensors")
    message = refused(copied)
    assert message.startswith("weights.safetensors: ")
    assert expected in message


Tensors = dict[str, Tensor]

TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop("norm.bias"), "norm.bias is missing"),
    "unknown": (lambda t: t.update(extra=torch.ones(1)), "extra is unknown to the model"),
    "shape": (
        lambda t: t.update({"norm.bias": torch.ones(33)}),
        "norm.bias has shape [33]: expected [32]",
    ),
    "dtype": (
        lambda t: t.update({"norm.bias": torch.ones(32, dtype=torch.int64)}),
        "norm.bias has dtype int64: expected float32",
    ),
    "values": (lambda t: t["norm.bias"].add_(1), "its values are not those of model.fingerprint"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_weights_that_do_not_fit_are_named(copied: Path, what: str) -> None:
    change, expected = TENSORS[what]
    tensors = load_file(copied / "weights.safetensors")
    change(tensors)
    save_file(tensors, copied / "weights.safetensors")
    assert f"weights.safetensors: {expected}" in refused(copied)
    assert f"weights.safetensors: {expected}" in refused(copied, tiny())


def test_a_link_that_leaves_the_directory_is_refused(copied: Path, tmp_path: Path) -> None:
    inside, weights = tmp_path / "inside", copied / "weights.safetensors"
    inside.mkdir()
    (copied / "plan.json").rename(inside / "plan.json")
    (inside / "weights.safetensors").symlink_to(weights)
    assert "a link that leaves the directory" in refused(inside)
    weights.rename(inside / "real.safetensors")
    (inside / "weights.safetensors").unlink()
    (inside / "weights.safetensors").symlink_to("real.safetensors")
    vitfold.load(inside)
    (inside / "weights.safetensors").unlink()
    (inside / "weights.safetensors").symlink_to("weights.safetensors")
    assert "weights.file='weights.safetensors': no such file" in refused(inside)


def test_a_directory_in_place_of_weights_is_refused(copied: Path) -> None:
    (copied / "weights.safetensors").unlink()
    (copied / "weights.safetensors").mkdir()
    assert "weights.file='weights.safetensors': not a file" in refused(copied)


CONFIGS: list[tuple[str, Any, str]] = [
    ("name", "PreTrainedModel", "model.name='PreTrainedModel': expected one of ViTModel"),
    ("name", "Dinov2Model", "model.arguments.config."),
    ("arguments/attention", "evil/kernel", "attention='evil/kernel': expected one of eager"),
    ("arguments/checkpoint", "../x", "model.arguments.checkpoint='../x': expected the name"),
    ("arguments/checkpoint", "a/..", "model.arguments.checkpoint='a/..': expected the name"),
    ("arguments/config", 1, "model.arguments.config=1: expected an object"),
    ("arguments/config/auto_map", {}, "config.auto_map is unknown to the class"),
    ("arguments/config/quantization_config", {}, "config.quantization_config is unknown"),
    ("arguments/config/_attn_implementation", "x", "config._attn_implementation is unknown"),
    ("arguments/config/dtype", "load", "config.dtype is unknown"),
    ("arguments/config/hidden_size", "8", "model.arguments do not make a ViTModel"),
    ("arguments/config/hidden_size", 2**30, "config.hidden_size=1073741824: expected a number"),
    ("arguments/config/hidden_act", "nope", "model.arguments do not make a ViTModel"),
    ("arguments/config/num_hidden_layers", 10**6, "num_hidden_layers=1000000: expected an int"),
    ("arguments/config/num_hidden_layers", 2, "model.depth=3: this ViTModel has 2"),
    ("arguments/config/image_size", 40, "weights.safetensors: "),
    ("arguments/code", "x", "model.arguments.code is unknown"),
]


@pytest.fixture(scope="module")
def saved_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    vitfold.save(vitfold.fold(models.hf("ViTModel"), "tome", r=3), directory, backbone=True)
    return directory


@pytest.mark.parametrize(("path", "value", "expected"), CONFIGS)
def test_wrong_configurations_are_named(
    saved_hf: Path, tmp_path: Path, path: str, value: Any, expected: str
) -> None:
    for file in saved_hf.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    put(tmp_path, f"model/{path}", value)
    assert expected in refused(tmp_path)


# Mutated plans

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**53, 2**64, 10**400, 0.5, -0.0, 1e300),
    *("", "x", "tome", "lgtm", "../x", "\ud800", "a\nb", "é" * 300, [], {}, [[]], [None], {"": {}}),
    *({"r": 1, "inflection": 0}, [1] * 600, "timm", "digits", "other", "transformers"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys:
            found += [(value, key), *places(value[key])]
    return found


def mutate_value(data: bytes, rng: random.Random) -> bytes:
    """One to three values changed, moved, removed or added."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        spots = places(value)
        if not spots:
            break
        place, key = rng.choice(spots)
        other, there = rng.choice(spots)
        act = rng.randrange(5)
        if act == 0:
            place[key] = copy.deepcopy(rng.choice(ODD))
        elif act == 1:
            del place[key]
        elif act == 2:
            place[key] = copy.deepcopy(other[there])
        elif act == 3 and isinstance(place, dict):
            place[rng.choice([str(there), "x", "", "seed", "skip"])] = rng.choice([0, 3, "k"])
        elif isinstance(place[key], int | float):
            place[key] += rng.choice([-1, 1, 0.5, 100])
    return json.dumps(value).encode()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, doubled or cut off."""
    text = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice([1, 1, 2, 8, 64]))
        act = rng.randrange(5)
        if act == 0:
            text[start:stop] = bytes(rng.randrange(256) for _ in range(stop - start))
        elif act == 1:
            del text[start:stop]
        elif act == 2:
            text[start:start] = text[start:stop] * rng.choice([1, 1, 50])
        elif act == 3:
            text[start:start] = rng.choice([b"[", b"{", b'"', b",", b"NaN", b"1e999", b"\\u", b"9"])
        elif start:
            del text[start:]
    return bytes(text)


def bases() -> list[bytes]:
    """Plans of all sources and methods."""
    folds_ = [
        vitfold.fold(tiny(), vitfold.ToMe((3, -1.0))),
        vitfold.fold(tiny(), vitfold.LGTM([1, 2], window=2)),
        vitfold.fold(create_digits(pretrained=False), vitfold.Drop(2)),
        vitfold.fold(models.hf("CLIPModel"), vitfold.DFE(flops=0.9)),
        vitfold.fold(small.vit(), "tome", r=1),
    ]
    return [encode(describe(model, backbone=True)) for model in folds_]


def accepted(data: bytes) -> Plan | None:
    """The plan in the bytes, if they are one; the only other way out is a line in a `PlanError`."""
    try:
        return decode(data)
    except PlanError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 700
    return None


def test_10000_mutated_plans() -> None:
    rng, plans, good = random.Random(0), bases(), 0
    for number in range(10_000):
        mutate = mutate_value if number % 2 else mutate_bytes
        data = mutate(rng.choice(plans), rng)
        plan = accepted(data)
        if plan is not None:
            good += 1
            assert decode(encode(plan)) == plan
            given = json.loads(data)
            assert json.loads(encode(plan)) == given | {"method": plan.method.to_json()}
    assert 100 < good < 9_000


def test_mutated_plans_through_all_of_load(copied: Path) -> None:
    rng, data = random.Random(1), (copied / "plan.json").read_bytes()
    good = 0
    for number in range(600):
        mutate = mutate_value if number % 4 else mutate_bytes
        (copied / "plan.json").write_bytes(mutate(data, rng))
        plan = accepted((copied / "plan.json").read_bytes())
        try:
            model = vitfold.load(copied)
        except PlanError:
            continue
        assert plan is not None
        assert (fold_of(model).method, fold_of(model).schedule) == (plan.method, plan.schedule)
        good += 1
    assert good > 5


def test_mutated_weights(copied: Path) -> None:
    rng, path = random.Random(2), copied / "weights.safetensors"
    data = path.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    for number in range(300):
        if number % 3:
            path.write_bytes(mutate_bytes(data[:head], rng) + data[head:])
        else:
            path.write_bytes(mutate_bytes(data, rng))
        if path.read_bytes() != data:
            refused(copied)
