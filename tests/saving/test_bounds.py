"""What is too large, too many or out of reach is refused before it takes memory."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.saving import put, refused, same, tiny
from torch import Tensor, nn

import vitfold
from vitfold.errors import PlanError
from vitfold.folding.calls import fold_of
from vitfold.saving.models import save_model

MAKERS: dict[str, tuple[Any, str, list[str]]] = {
    "timm": (tiny, "model/arguments", ["img_size", "embed_dim", "num_classes"]),
    "naflex": (
        lambda: models.kind("naflexvit_base_patch16_gap"),
        "model/arguments",
        ["embed_dim", "num_classes"],
    ),
    "vit": (
        lambda: models.hf("ViTModel"),
        "model/arguments/config",
        ["image_size", "hidden_size", "intermediate_size", "num_channels"],
    ),
    "dinov3": (
        lambda: models.hf("DINOv3ViTModel"),
        "model/arguments/config",
        ["image_size", "hidden_size", "num_channels"],
    ),
    "siglip2": (
        lambda: models.hf("Siglip2VisionModel"),
        "model/arguments/config",
        ["num_patches", "hidden_size", "patch_size"],
    ),
}

CASES = [(name, key) for name, (_, _, keys) in MAKERS.items() for key in keys]


@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize(("name", "key"), CASES)
def test_one_number_takes_no_memory(
    name: str, key: str, backbone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is, it is refused while the model has no memory yet."""
    make, path, _ = MAKERS[name]
    vitfold.save(vitfold.fold(make(), "tome", r=2), tmp_path, backbone=backbone)
    good, start = (tmp_path / "plan.json").read_text(), time.monotonic()
    monkeypatch.setattr(torch, "zeros", small(torch.zeros))
    for number in (30_000, 2**24, 2**20 - 64, 2**31, -64, 0):
        (tmp_path / "plan.json").write_text(good)
        put(tmp_path, f"{path}/{key}", number)
        assert refused(tmp_path).startswith(("plan.json: ", "weights.safetensors: "))
    assert time.monotonic() - start < 60


def small(zeros: Any) -> Any:
    """Fails where an image takes memory that is more than one should."""

    def watched(*sizes: Any, **options: Any) -> Tensor:
        new: Tensor = zeros(*sizes, **options)
        if not new.is_meta and new.numel() > 2**27:
            raise AssertionError(f"{new.numel()} numbers were made")
        return new

    return watched


def test_values_are_counted(tmp_path: Path) -> None:
    vitfold.save(vitfold.fold(tiny(), "tome", r=2), tmp_path)
    put(tmp_path, "model/arguments/embed_dim", 48)
    assert "model.trunk.width=32: this VisionTransformer has 48" in refused(tmp_path)
    put(tmp_path, "model/arguments/embed_dim", 32)
    put(tmp_path, "model/arguments/num_classes", 6)
    assert "numbers: expected model.values=" in refused(tmp_path)
    put(tmp_path, "model/values", None)  # as in a plan of schema 1
    assert "pretrained weights cannot be had" in refused(tmp_path)


class Towers(nn.Module):
    """Two trunks of one model."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = tiny(), tiny()


def test_two_folded_parts_are_refused(tmp_path: Path) -> None:
    model = Towers()
    vitfold.fold(model.one, "tome", r=2)
    vitfold.fold(model.two, "drop", r=1)
    for save in (vitfold.save, save_model):
        with pytest.raises(PlanError, match=r"Towers has 2 folded parts \(VisionTransformer and"):
            save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    vitfold.save(model.two, tmp_path / "two", backbone=True)
    assert same(model.two, vitfold.load(tmp_path / "two"))


class Packed(Tensor):
    """Values that nobody can read, as those of quantized tensors."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("view", "reshape", "contiguous"):
            raise NotImplementedError(f"Packed dispatch: {func}\nnot implemented")
        return super().__torch_function__(func, types, args, kwargs or {})


def quantized() -> Any:
    model = tiny()
    weight = model.blocks[0].mlp.fc1.weight
    model.blocks[0].mlp.fc1.weight = nn.Parameter(weight.data.as_subclass(Packed), False)
    return model


def test_a_quantized_model_is_saved_without_its_weights(tmp_path: Path) -> None:
    model = vitfold.fold(quantized(), "tome", r=2)
    with pytest.raises(
        PlanError, match=r"fc1\.weight', a Pa\w+, cannot be read, as in quanti"
    ) as e:
        vitfold.save(model, tmp_path, backbone=True)
    assert "\n" not in str(e.value)
    vitfold.save(model, tmp_path)
    assert "model.source='other'" in refused(tmp_path)
    assert fold_of(vitfold.load(tmp_path, quantized())).schedule == fold_of(model).schedule
