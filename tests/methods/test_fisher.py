"""Fisher and FisherCut: tokens by what the output notices of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.reference import Reduce, Reference, ward, wardcut
from support.rest import rest
from support.small import MODELS, images, vit
from torch import Tensor, nn

import vitfold
from vitfold import Fisher, FisherCut, MethodError
from vitfold.folding.calls import fold_of, watch
from vitfold.tools.sensitivity import DRAWS, information

each_model = pytest.mark.parametrize("name", MODELS)


def learned(model: nn.Module) -> Any:
    return fold_of(model).learned


def calibrated(name: str, method: Any) -> Any:
    with pytest.warns(UserWarning, match=f"vitfold calibrate MODEL --method {method.name}"):
        model = vitfold.fold(MODELS[name]().double(), method)
    return vitfold.calibrate(model, images(model, 6, dtype=torch.float64))


def pictures(model: Any, number: int) -> Tensor:
    return images(model, number, dtype=torch.float32)


def in_directions(reduce: Reduce, basis: Tensor) -> Reduce:
    """What a reference does, by cues in the directions of every block."""
    return lambda block, tokens, cue: reduce(block, tokens, cue @ basis[block].to(cue.dtype))


@each_model
@torch.no_grad()
def test_each_image_is_as_the_reference_has_it(name: str) -> None:
    model = calibrated(name, Fisher(r=[4, 6, 3]))
    x = images(model, 2, seed=5, dtype=torch.float64)
    schedule = list(fold_of(model).schedule)
    reduce = in_directions(ward(schedule, model.num_prefix_tokens), learned(model).basis)
    reference = Reference(model, "x")
    expected = torch.stack([reference.read(reference.run(image, reduce)) for image in x])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["deit", "dino3", *rest("vit", "dino", "eva")])
@torch.no_grad()
def test_each_image_with_a_number_of_its_own_is_as_the_reference_has_it(name: str) -> None:
    model = calibrated(name, FisherCut(flops=0.7))
    x = images(model, 2, seed=5, dtype=torch.float64)
    heights = learned(model).height.tolist()
    assert any(heights)
    cut = wardcut(heights, model.num_prefix_tokens)
    reference = Reference(model, "x")
    reduce = in_directions(cut, learned(model).basis)
    expected = torch.stack([reference.read(reference.run(image, reduce)) for image in x])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)


def test_information_is_what_plain_gradients_say() -> None:
    model = vit(depth=3).double()
    x = images(model, 3, dtype=torch.float64)
    caught: dict[int, Tensor] = {}
    for index, block in enumerate(model.blocks):  # type: ignore[union-attr, arg-type]
        block.norm2.register_forward_pre_hook(
            lambda _, inputs, index=index: caught.__setitem__(index, inputs[0])
        )
    said = model(x).log_softmax(dim=1)
    expected = torch.zeros(3, 48, 48, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        signs = torch.randint(2, said.shape, generator=generator) * 2 - 1
        number = (said * said.detach().exp().sqrt() * signs).sum()
        for index in range(2):  # after the last one's attention, patches tell nobody anything
            (gradient,) = torch.autograd.grad(number, caught[index], retain_graph=True)
            for image in gradient[:, 1:]:
                expected[index] += image.T @ image / image.square().sum()
    torch.testing.assert_close(information(vit(depth=3).double(), x), expected)


def test_all_signs_together_give_the_fisher_information() -> None:
    """Over all draws of signs, squares are what each class would give, by its likelihood."""
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    likely = logits.softmax(0).detach()
    total = torch.zeros(3, 3, dtype=torch.float64)
    for signs in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3):
        number = (logits.log_softmax(0) * likely.sqrt() * signs).sum()
        (gradient,) = torch.autograd.grad(number, logits)
        total += torch.outer(gradient, gradient) / 8
    torch.testing.assert_close(total, torch.diag(likely) - torch.outer(likely, likely))


def test_calibration_is_the_same_each_time_and_leaves_no_trace() -> None:
    model = vit()
    x = pictures(model, 6)
    dense = model(x)
    vitfold.fold(model, Fisher(flops=0.7))
    steps: list[int] = []
    vitfold.calibrate(model, x, progress=lambda: steps.append(1))
    assert steps
    assert fold_of(model).method.flops is None  # type: ignore[attr-defined]
    assert vitfold.flops(model, x) / vitfold.flops(vit(), x) == pytest.approx(0.7, abs=0.01)
    basis, schedule = learned(model).basis.clone(), fold_of(model).schedule
    vitfold.calibrate(vitfold.fold(model, Fisher(flops=0.7)), x)
    assert torch.equal(learned(model).basis, basis)
    assert fold_of(model).schedule == schedule
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(vitfold.unfold(model)(x), dense)


@pytest.mark.parametrize(("share", "place"), [(0.8, False), (0.7, True)])
def test_calibration_reaches_the_share(share: float, place: bool) -> None:
    model = vit()
    x = pictures(model, 16)
    dense = vitfold.flops(model, x)
    vitfold.fold(model, FisherCut(flops=share))
    vitfold.calibrate(model, x, place=place)
    assert vitfold.flops(model, x) / dense == pytest.approx(share, abs=0.02)


def test_models_of_embeddings_and_of_features_notice_too() -> None:
    for options in ({"num_classes": 0}, {"num_classes": 0, "global_pool": ""}, {"num_classes": 1}):
        model = vitfold.fold(vit(**options), Fisher(r=4))
        before = learned(model).basis.clone()
        vitfold.calibrate(model, pictures(model, 2))
        assert learned(model).basis.isfinite().all()
        assert not torch.equal(learned(model).basis, before)


def test_where_nothing_is_noticed_all_is_alike() -> None:
    model = vit(embed_dim=96)
    model.head.weight.data.zero_()  # type: ignore[union-attr, operator]
    vitfold.calibrate(vitfold.fold(model, Fisher(r=4)), pictures(model, 2))
    basis = learned(model).basis[0].double()
    assert basis.shape == (96, 32)
    torch.testing.assert_close(basis.T @ basis, torch.eye(32).double(), rtol=0, atol=1e-6)
    assert model(pictures(model, 2)).isfinite().all()


def test_directions_are_saved_with_the_plan(tmp_path: Path) -> None:
    model = vit()
    x = pictures(model, 4)
    vitfold.calibrate(vitfold.fold(model, Fisher(r=4)), x)
    vitfold.save(model, tmp_path)
    again = vitfold.load(tmp_path, vit())
    assert torch.equal(learned(again).basis, learned(model).basis)
    assert torch.equal(again(x), model(x))


def test_freezing_keeps_the_directions() -> None:
    model = vit()
    x = pictures(model, 8)
    vitfold.calibrate(vitfold.fold(model, FisherCut(flops=0.7)), x)
    basis = learned(model).basis.clone()
    vitfold.freeze(model, x)
    assert isinstance(fold_of(model).method, Fisher)
    assert torch.equal(learned(model).basis, basis)


def test_graphs_give_the_same_answers() -> None:
    model = vit()
    x = pictures(model, 2)
    vitfold.calibrate(vitfold.fold(model, Fisher(r=4)), x)
    with torch.no_grad():
        eager = model(x)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x), eager, rtol=0, atol=1e-5)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), eager, rtol=0, atol=1e-5)


def test_half_precision_compares_in_its_own() -> None:
    model = vit()
    vitfold.calibrate(vitfold.fold(model, Fisher(r=4)), pictures(model, 2)).bfloat16()
    assert learned(model).basis.dtype == torch.float32
    assert model(images(model, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_other_cues_are_refused() -> None:
    with pytest.raises(MethodError, match=r"cue='k': Fisher .* leave out cue, or take Ward$"):
        Fisher(r=4, cue="k")
    with pytest.raises(MethodError, match=r"cue='k': FisherCut .* or take WardCut$"):
        FisherCut(flops=0.6, cue="k")
    model = vitfold.fold(vit(), Fisher(flops=0.7))
    with pytest.raises(MethodError, match="Fisher compares by one cue"):
        vitfold.calibrate(model, pictures(model, 2), cues=["k"])


def test_tokens_are_merged_by_other_partners_than_wards() -> None:
    model = vit()
    x = pictures(model, 4)

    def slots() -> Tensor:
        with watch() as runs, torch.no_grad():
            model(x)
        return runs[0].last.whole.slot

    vitfold.fold(model, "ward", r=4)
    by_all = slots()
    vitfold.calibrate(vitfold.fold(model, Fisher(r=4)), x)
    assert not torch.equal(slots(), by_all)
    assert (
        F.cosine_similarity(learned(model).basis[0].T, learned(model).basis[1].T).abs().mean() < 1
    )
