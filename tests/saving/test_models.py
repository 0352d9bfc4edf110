"""Models by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import models

import vitfold
from vitfold import segment
from vitfold.errors import MissingExtra, PlanError, UnsupportedModel
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.saving.models import create_model, dataset_of, save_model


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches for the network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def refused(name: str, **options: Any) -> str:
    """What the error says, on its one line."""
    with pytest.raises(UnsupportedModel) as caught:
        create_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def trunk(model: Any) -> Any:
    """The part of a model that is folded."""
    return find(model).trunk


@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k"])
def test_timm_models(name: str) -> None:
    model: Any = create_model(name, depth=2, img_size=32, num_classes=3)
    assert (len(model.blocks), model.num_classes) == (2, 3)
    assert model.pretrained_cfg["tag"] == "r160_in1k"


def test_the_embedded_model() -> None:
    random: Any = create_model("digits")
    trained = create_model("digits", pretrained=True)
    assert type(random) is type(trained) is timm.models.VisionTransformer
    state = create_model("digits", pretrained=True).state_dict()
    assert all(torch.equal(state[k], v) for k, v in trained.state_dict().items())
    assert not torch.equal(state["head.weight"], random.head.weight)
    assert "digits is made in one way: leave out depth" in refused("digits", depth=3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("test_vitt", "unknown model 'test_vitt' (did you mean 'test_vit'?)"),
        ("deit_small_patch16", "(did you mean 'deit_small_patch16_224'?)"),
        ("test_vit.r160_in2k", "(did you mean 'test_vit.r160_in1k'?)"),
        ("digit", "(did you mean "),
        ("", "unknown model ''"),
        ("no/such/directory", "unknown model 'no/such/directory'"),
        ("hf-hub:timm/vit", "unknown model 'hf-hub:timm/vit'"),
        ("a\nb" * 500, "unknown model "),
    ],
)
def test_unknown_names_get_the_nearest(name: str, hint: str) -> None:
    message = refused(name)
    assert hint in message
    assert len(message) < 250


def test_options_that_a_model_does_not_take_are_named() -> None:
    assert "test_vit cannot be made: " in refused("test_vit", nonsense=1)
    assert "nonsense" in refused("test_vit", nonsense=1)
    assert "test_vit cannot be made: " in refused("test_vit", num_heads=5)


def test_weights_that_cannot_be_had_are_named() -> None:
    assert "test_vit4 cannot be made: No pretrained weights" in refused(
        "test_vit4", pretrained=True
    )
    assert "test_vit cannot be made: " in refused("test_vit", pretrained=True)
    assert "hf:no/such cannot be made: " in refused("hf:no/such")


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    ("saved", "new"),
    [
        ("ViTForImageClassification", "ViTForImageClassification"),
        ("DINOv3ViTModel", "DINOv3ViTModel"),
        ("CLIPModel", "CLIPVisionModelWithProjection"),
        ("SiglipModel", "SiglipVisionModel"),
        ("Siglip2Model", "Siglip2VisionModel"),
    ],
)
def test_models_of_hugging_face(saved: str, new: str, pretrained: bool, tmp_path: Path) -> None:
    before = models.hf(saved, **({"projection_dim": 8} if saved == "CLIPModel" else {}))
    before.save_pretrained(tmp_path)
    model = create_model(f"hf:{tmp_path}", pretrained=pretrained)
    assert type(model).__name__ == new
    one, other = (trunk(each).state_dict() for each in (before, model))
    assert all(torch.equal(one[key], value) for key, value in other.items()) == pretrained
    vitfold.fold(model, "tome", r=2)


def test_models_of_hugging_face_take_options(tmp_path: Path) -> None:
    models.hf("ViTModel").save_pretrained(tmp_path)
    model: Any = create_model(f"hf:{tmp_path}", num_hidden_layers=2)
    assert model.config.num_hidden_layers == 2


def test_text_models_are_refused(tmp_path: Path) -> None:
    import transformers

    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    assert "BertModel is no image model that can be folded" in refused(f"hf:{tmp_path}")


def test_transformers_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r'pip install "vitfold\[hf\]"'):
        create_model("hf:google/vit-base-patch16-224")


def test_a_saved_plan_is_a_name(tmp_path: Path) -> None:
    model = vitfold.fold(models.kind("test_vit"), "lgtm", r=3)
    vitfold.save(model, tmp_path, backbone=True)
    again = create_model(str(tmp_path))
    assert fold_of(again).method == vitfold.LGTM(3)
    images = models.images(model)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    with pytest.raises(PlanError, match="is a saved plan: leave out depth"):
        create_model(str(tmp_path), depth=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match=r"has neither plan\.json nor a config\.json"):
        create_model(str(tmp_path / "empty"))


def test_the_embedded_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model: Any = create_model("digits", pretrained=True)
    model.norm.weight.data.mul_(2)
    save_model(model, tmp_path)
    again = create_model(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["method"], plan["schedule"]) == (None, [])
    for key, value in {"source": "segmenter", "name": "numbers", "arguments": {"depth": 3}}.items():
        change = plan | {"model": plan["model"] | {key: value}}
        (tmp_path / "plan.json").write_text(json.dumps(change))
        with pytest.raises(PlanError, match=r"plan\.json: model\."):
            create_model(tmp_path)


def test_the_images_of_a_model_are_known_without_making_it(tmp_path: Path) -> None:
    model = create_model("digits")
    save_model(model, tmp_path / "dense")
    save_model(vitfold.fold(model, "tome", r=2), tmp_path / "folded")
    save_model(create_model("test_vit"), tmp_path / "other")
    named = [dataset_of(name) for name in ("digits", tmp_path / "dense", tmp_path / "folded")]
    assert [*named, dataset_of(model)] == ["digits"] * 4
    assert [dataset_of(name) for name in (tmp_path / "other", "test_vit", "nothing")] == [None] * 3
    assert dataset_of(create_model("test_vit")) is None
    model.reset_classifier(3)
    assert dataset_of(model) is None


def test_a_saved_dense_model_takes_other_arguments(tmp_path: Path) -> None:
    model: Any = create_model("test_vit", img_size=32, num_classes=3)
    save_model(model, tmp_path)
    other: Any = create_model(tmp_path, img_size=64, num_classes=0)
    assert other.patch_embed.img_size == (64, 64)
    assert torch.equal(other.norm.weight, model.norm.weight)
    assert torch.equal(other.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    head: Any = create_model(tmp_path, num_classes=4)
    assert torch.equal(head.pos_embed, model.pos_embed)
    assert head.head.weight.shape[0] == 4
    save_model(other, tmp_path / "again")
    assert create_model(tmp_path / "again").pretrained_cfg == create_model(tmp_path).pretrained_cfg


def test_paths_that_cannot_be_are_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    model = vitfold.fold(create_model("digits"), "tome", r=2)
    for name in ("a\0b", str(tmp_path / "loop"), str(tmp_path / "loop" / "in")):
        tries = (create_model, vitfold.load, lambda path: vitfold.save(model, path), dataset_of)
        for attempt in tries[:3]:
            with pytest.raises((PlanError, UnsupportedModel)) as caught:
                attempt(name)
            assert "\n" not in str(caught.value)
            assert "\0" not in str(caught.value)
        assert dataset_of(name) is None


def test_models_that_cannot_be_folded_are_saved_dense(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=2).eval()
    save_model(model, tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(create_model(tmp_path)(images), model(images))


def test_a_segmenter_is_opened_by_whoever_has_not_asked_for_segmenters(tmp_path: Path) -> None:
    options: Any = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
    model = segment.create_segmenter("vit_tiny_patch16_224", 3, **options)
    save_model(vitfold.fold(model, "tome", r=1), tmp_path)
    script = """
import sys, vitfold.saving.models
assert "vitfold.segment" not in sys.modules
model = vitfold.saving.models.create_model(sys.argv[1])
print(type(model).__name__, model.classes, model.training)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Segmenter", "3", "False"]


def test_a_dense_model_takes_the_place_of_a_plan(tmp_path: Path) -> None:
    """And is found by a path of any kind."""
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).eval()
    save_model(vitfold.fold(model, "tome", r=1), tmp_path)
    vitfold.unfold(model).norm.weight.data.fill_(3)
    save_model(model, tmp_path)
    again: Any = create_model(tmp_path)
    assert not hasattr(again, "_vitfold")
    assert torch.equal(again.norm.weight, model.norm.weight)


@pytest.mark.parametrize(
    "new",
    [
        lambda: create_model("digits"),
        lambda: models.hf("ViTModel"),
        lambda: create_model("test_vit", img_size=32),
    ],
    ids=["own", "transformers", "timm"],
)
def test_files_may_be_read_by_whoever_may_read_others(new: Any, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    model = new()
    save_model(model, tmp_path / "saved")
    save_model(vitfold.fold(model, vitfold.ToMe(r=2)), tmp_path / "saved")
    modes = {file.stat().st_mode for file in [*tmp_path.glob("saved/*"), tmp_path / "plain"]}
    assert len(modes) == 1
