"""What holds of DynamicViT and A-ViT alike: saved, trained and refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning import (
    KINDS,
    create,
    registers,
    without,
)
from support.small import MODELS, images, vit
from support.training import Blobs, training
from torch import Tensor, nn

import vitfold
from vitfold import AViT, DynamicViT, MethodError
from vitfold.folding.calls import fold_of
from vitfold.train import Recipe


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
def test_they_are_saved_copied_and_taken_off(method: Any, tmp_path: Path) -> None:
    model = create("vit", method, torch.float32)
    x = images(model, 2).float()
    with torch.no_grad():
        for values in fold_of(model).learned.parameters():  # type: ignore[union-attr]
            values.add_(0.1)
        output = model(x)
        vitfold.save(model, tmp_path / "plan", backbone=True)
        assert torch.equal(vitfold.load(tmp_path / "plan", vit())(x), output)
        assert torch.equal(copy.deepcopy(model)(x), output)
        dense = vit()
        assert torch.equal(vitfold.unfold(model)(x), dense(x))
    assert model.state_dict().keys() == dense.state_dict().keys()


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
def test_they_train_and_go_on_where_they_were_stopped(method: Any, tmp_path: Path) -> None:
    """The same weights whether or not a training was interrupted."""
    recipe = Recipe(epochs=2, batch_size=4)

    def run(place: Path, stop: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model: nn.Module = vit(grid=(8, 8), num_classes=3)
        vitfold.fold(model, method)
        images: Any = Blobs() if stop is None else Stopping(stop)
        training(model, recipe, images, place, Blobs(6), resume=True, every=2)
        return model.state_dict()

    wanted = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=30)
    result = run(tmp_path / "b")
    for name, tensor in wanted.items():
        assert torch.equal(result[name], tensor), name


class Stopping(Blobs):
    """Blobs that end a training after so many images."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


REFUSED = {
    "no class token": (lambda: vitfold.fold(without(), AViT()), "class tokens: the model has none"),
    "registers": (lambda: vitfold.fold(registers(), AViT()), "class tokens: the model has none"),
    "registers alone": (lambda: vitfold.fold(registers(), vitfold.EViT(r=3)), "has none"),
    "an average": (lambda: vitfold.fold(MODELS["eva"](), AViT()), "reads out its patches"),
    "twice": (lambda: DynamicViT(r=3, blocks=(1, 1)), "rising numbers"),
    "nowhere": (lambda: vitfold.EViT(r=3, blocks=()), "rising numbers"),
    "huge": (lambda: AViT(gamma=10**400), "gamma=1000"),
    "huge share": (lambda: AViT(flops=10**400), "flops=1000"),
    "huge ramp": (lambda: vitfold.EViT(flops=0.7, inflection=10**400), "inflection=1000"),
    "eps": (lambda: AViT(eps=0.9), "eps=0.9"),
    "gamma": (lambda: AViT(gamma=float("nan")), "gamma=nan"),
    "depth": (lambda: AViT(depth=0), "depth=0"),
    "share": (lambda: AViT(flops=1.2), "flops=1.2"),
    "strength": (lambda: DynamicViT(r=3, strength=-1), "strength=-1"),
    "blocks": (lambda: vitfold.fold(vit(), DynamicViT(r=3, blocks=(7,))), "4 blocks"),
    "neither": (lambda: DynamicViT(), "r or flops"),
}


@pytest.mark.parametrize(("wrong", "says"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(wrong: Any, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        wrong()


@pytest.mark.parametrize("method", [*KINDS.values(), vitfold.LTMP(merge_threshold=0.4)], ids=str)
def test_what_is_learned_stays_precise_in_a_half_precise_model(method: Any, tmp_path: Path) -> None:
    model = create("vit", method, torch.float32).bfloat16()
    x = images(model, 2).bfloat16()
    learned = fold_of(model).learned
    assert learned is not None
    assert {values.dtype for values in learned.parameters()} == {torch.float32}
    with torch.no_grad():
        output = model(x)
        vitfold.save(model, tmp_path, backbone=True)
        assert torch.equal(vitfold.load(tmp_path, vit().bfloat16())(x), output)


def test_a_plan_for_other_blocks_is_refused(tmp_path: Path) -> None:
    model = vitfold.fold(vit(), vitfold.EViT(r=3, blocks=(1,)))
    vitfold.save(model, tmp_path)
    text = (tmp_path / "plan.json").read_text()
    changed = text.replace('"blocks": [\n      1\n    ]', '"blocks": [\n      50\n    ]')
    assert changed != text
    (tmp_path / "plan.json").write_text(changed)
    with pytest.raises(vitfold.PlanError, match=r"plan\.json: blocks=\[50\]"):
        vitfold.load(tmp_path, vit())
