"""Loading onto a model that is given, and taking pretrained weights by name."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import models, small
from support.saving import DEPTH, refused, same, tiny
from torch import nn

import vitfold
from vitfold.errors import FoldError, UnsupportedModel
from vitfold.folding.calls import fold_of, folds
from vitfold.saving.models import create_model


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
    "depth": (
        lambda: tiny(depth=5),
        "plan.json: model.trunk.depth=4: this Vision",
    ),
    "width": (lambda: tiny(embed_dim=64), "plan.json: model.trunk.width=32: this "),
    "prefix": (lambda: tiny(reg_tokens=2), "plan.json: model.trunk.prefix=1: this "),
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
        new = create(name, **options)
        return models.scatter(new) if pretrained else new

    monkeypatch.setattr(timm, "create_model", fetch)
    assert same(model, vitfold.load(tmp_path))


def test_weights_that_are_not_the_pretrained_ones_are_not_replaced_by_them(tmp_path: Path) -> None:
    model = create_model("digits", pretrained=True)
    with torch.no_grad():
        model.norm.bias += 1e-6
    vitfold.save(vitfold.fold(model, "tome", r=3), tmp_path)
    message = refused(tmp_path)
    assert "model.fingerprint" in message
    assert "backbone=True" in message
