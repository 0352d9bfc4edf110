"""A saved model is a model by the name of its directory."""

from pathlib import Path

import pytest
import torch
from support.training import same, small
from timm.models import save_for_hf

import vitfold
from vitfold.saving.models import create_model, save_model


def test_saved_models_are_models_by_name(tmp_path: Path) -> None:
    model = small(global_pool="avg")
    save_model(model, tmp_path / "m")
    again = create_model(str(tmp_path / "m"))
    assert same(model.state_dict(), again.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), again.eval()(x))
    files = ["plan.json", "weights.safetensors"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == files
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    """In the layout of timm, which may come with one."""
    save_for_hf(small(), tmp_path, safe_serialization=True)
    create_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(small().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(vitfold.PlanError, match=r"has no \.safetensors"):
        create_model(tmp_path)
