"""WardCut: heights that are the same for all images, and where they come from."""

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.reference import Reference, wardcut
from support.rest import rest
from support.small import MODELS, images, vit
from torch import Tensor, nn

import vitfold
from vitfold import DataError, MethodError, PlanError, WardCut
from vitfold.folding.calls import fold_of, watch
from vitfold.tokens.tokenmap import DROPPED

calibrate_ = importlib.import_module("vitfold.tools.calibrate")

each_model = pytest.mark.parametrize("name", MODELS)


def mixed(model: Any, batch: int = 4, seed: int = 0) -> Tensor:
    """Images of several contrasts, so that counts differ."""
    dtype = next(model.parameters()).dtype
    levels = torch.linspace(0.2, 1.5, batch, dtype=dtype)
    return images(model, batch, seed, dtype) * levels[:, None, None, None]


def cut(name: str, dtype: torch.dtype = torch.float64, flops: float = 0.7) -> Any:
    """A model with heights for its own images."""
    model = vitfold.fold(MODELS[name]().to(dtype), WardCut(flops=flops))
    return vitfold.calibrate(model, mixed(model, 8))


def heights(model: nn.Module) -> list[float]:
    learned: Any = fold_of(model).learned
    result: list[float] = learned.height.tolist()
    return result


@each_model
@torch.no_grad()
def test_every_image_is_as_the_reference_has_it(name: str) -> None:
    model = cut(name)
    x = mixed(model, 3)
    reference = Reference(model, "x")
    reduce = wardcut(heights(model), model.num_prefix_tokens)
    with watch() as runs:
        logits = model(x)
    left = [reference.run(image, reduce) for image in x]
    slots = [
        {member: i for i, token in enumerate(tokens) for member in token.members} for tokens in left
    ]
    tokens = runs[0].states[0].tokens
    expected = [[slot.get(token, DROPPED) for token in range(tokens)] for slot in slots]
    assert runs[0].last.whole.slot.tolist() == expected
    read = torch.stack([reference.read(tokens) for tokens in left])
    torch.testing.assert_close(logits, read, rtol=0, atol=1e-9)


@each_model
@torch.no_grad()
def test_packed_masked_and_alone_agree(name: str) -> None:
    model = cut(name)
    x = mixed(model, 5, seed=3)
    together = model(x)
    counts = vitfold.trace(model, x).counts[-1]
    assert len(set(counts)) > 1
    torch.testing.assert_close(
        torch.cat([model(x[i : i + 1]) for i in range(5)]), together, rtol=1e-9, atol=1e-9
    )
    with vitfold.masked():
        torch.testing.assert_close(model(x), together, rtol=1e-9, atol=1e-9)
        assert vitfold.trace(model, x).counts[-1] == counts


def test_until_it_is_calibrated_nothing_changes() -> None:
    model = vit()
    x = mixed(model)
    dense = model(x)
    assert torch.equal(vitfold.fold(model, WardCut(flops=0.5))(x), dense)
    vitfold.calibrate(model, x)
    assert not torch.equal(model(x), dense)
    assert torch.equal(vitfold.unfold(model)(x), dense)


@pytest.mark.parametrize(
    ("share", "inflection"),
    [(0.6, -0.5), (0.9, 0.0), *rest((0.9, -0.5), (0.7, -0.5), (0.7, 0.0), (0.6, 0.0))],
)
def test_calibration_reaches_the_share(share: float, inflection: float) -> None:
    model = vit(depth=8)
    x = mixed(model, 64)
    dense = vitfold.flops(model, x)
    vitfold.fold(model, WardCut(flops=share, inflection=inflection))
    steps: list[int] = []
    assert vitfold.calibrate(model, x, progress=lambda: steps.append(1)) is model
    assert steps
    assert vitfold.flops(model, x) / dense == pytest.approx(share, abs=0.01)
    assert not model.training
    again = heights(model)
    vitfold.calibrate(model.train(), x)
    assert heights(model) == again
    assert model.training


def test_it_may_first_look_for_where_tokens_leave() -> None:
    """Then other blocks merge, for the same cost."""
    model = vit(depth=4)
    x = mixed(model, 32)
    dense = vitfold.flops(model, x)
    vitfold.fold(model, WardCut(flops=0.7))
    plain = heights(vitfold.calibrate(model, x))
    steps: list[int] = []
    vitfold.calibrate(model, x, place=True, progress=lambda: steps.append(1))
    assert calibrate_.PASSES < len(steps) <= calibrate_.passes(WardCut(flops=0.7), 4, 0, True)
    assert vitfold.flops(model, x) / dense == pytest.approx(0.7, abs=0.0125)
    assert heights(model) != plain


def test_a_model_in_training_learns_through_the_mask() -> None:
    model = cut("vit", torch.float32).train()
    model(mixed(model)).square().sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().max() > 0


def test_comes_back(tmp_path: Path) -> None:
    model = cut("vit", torch.float32)
    x = mixed(model)
    vitfold.save(model, tmp_path)
    again = vitfold.load(tmp_path, vit())
    assert torch.equal(again(x), model(x))
    assert heights(again) == heights(model)
    file = next(tmp_path.glob("*.safetensors"))
    tensors = load_file(file)
    save_file({name: values + 9 for name, values in tensors.items()}, file)
    with pytest.raises(PlanError, match="out of bounds"):
        vitfold.load(tmp_path, vit())


def test_errors() -> None:
    model = vit()
    with pytest.raises(MethodError, match=r"ToMe\(r=3\) has nothing to calibrate"):
        vitfold.calibrate(vitfold.fold(model, "tome", r=3), mixed(model))
    with pytest.raises(MethodError, match=r"VisionTransformer has nothing to calibrate: .*'ward'"):
        vitfold.calibrate(vit(), mixed(model))
    vitfold.fold(model, WardCut(flops=0.5))
    with pytest.raises(DataError, match="no images"):
        vitfold.calibrate(model, mixed(model)[:0])
    with pytest.raises(MethodError, match="cannot be reached"):
        vitfold.calibrate(vitfold.fold(model, WardCut(flops=0.1)), mixed(model))
    for options in ({"flops": None}, {"inflection": 2}, {"cue": "y"}, {"proportional": 1}):
        with pytest.raises(MethodError):
            WardCut(**{"flops": 0.5, **options})  # type: ignore[arg-type]


@torch.no_grad()
def test_frozen_it_is_ward_with_the_mean_numbers() -> None:
    model = cut("vit", torch.float32)
    x = mixed(model, 8)
    means = torch.tensor(vitfold.trace(model, x).counts).double().mean(1).tolist()
    heights_, cue = heights(model), fold_of(model).method.to_json()["cue"]
    assert max(heights_) > 0
    vitfold.freeze(model, [x[:3], x[3:]])
    method = fold_of(model).method
    assert isinstance(method, vitfold.Ward)
    assert method.cue == cue
    counts = [numbers[0] for numbers in vitfold.trace(model, x).counts]
    assert counts == pytest.approx(means, abs=1)
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(x[:4]), model(x[:4]), atol=1e-4, rtol=1e-4)


class Normalized(nn.Module):
    """Prepares images itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images / 255 - 0.5) / 0.5)


def test_calibration_sees_what_the_model_sees() -> None:
    """Not the images that it prepares, as they come."""
    model = vit().double()
    x = mixed(model, 8)
    plain = vitfold.calibrate(vitfold.fold(copy.deepcopy(model), WardCut(flops=0.6)), x)
    wrapped = vitfold.fold(Normalized(model), WardCut(flops=0.6))
    vitfold.calibrate(wrapped, (x * 0.5 + 0.5) * 255)
    assert heights(wrapped) == pytest.approx(heights(plain), abs=1e-9)


def test_what_ward_cannot_reach_on_the_way_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is reached once, and coming closer asks for one that is out of reach."""
    model = vit(depth=8)
    x = mixed(model, 16)
    original = calibrate_._means

    def means(dense: Any, method: WardCut, weights: Any, share: float) -> tuple[int, ...]:
        if share != method.flops:
            raise MethodError(f"flops={share} cannot be reached")
        return original(dense, method, weights, share)

    monkeypatch.setattr(calibrate_, "_means", means)
    monkeypatch.setattr(calibrate_, "CLOSE", 0.0)
    monkeypatch.setattr(calibrate_, "NEAR", 0.1)
    vitfold.calibrate(vitfold.fold(model, WardCut(flops=0.7)), x)
    assert any(heights(model))


def test_calibration_takes_batches() -> None:
    model = vit().double()
    x = mixed(model, 8)
    inputs: list[Any] = [x, [x[:3], x[3:]], [(x[:5], torch.arange(5)), [x[5:], None]], {"x": x}]
    method = WardCut(flops=0.6)
    result = [heights(vitfold.calibrate(vitfold.fold(model, method), images)) for images in inputs]
    assert result == [result[0]] * 4
