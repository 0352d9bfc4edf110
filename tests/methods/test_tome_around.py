"""ToMeAround: blocks that see merged tokens, while the residual stream keeps all."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference import Reference, Token, tome
from support.rest import rest
from support.small import MODELS, images, vit
from torch import Tensor

import vitfold
from vitfold import MethodError, ToMeAround
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.methods.tome_around import Around
from vitfold.tokens.layout import Layout
from vitfold.tools.baselines import bound
from vitfold.tools.removal import removed

each_model = pytest.mark.parametrize("name", MODELS)


def spelled_out(model: Any, image: Tensor, numbers: list[int], proportional: bool) -> Tensor:
    """Logits of one image: in every block merge, run the block, and give what it adds to a merged
    token to all that it stands for."""
    reference = Reference(model, "x_pre", proportional)
    merge = tome(numbers, reference.prefix)
    rows = reference.embed(image.double())
    for block in range(reference.depth):
        cue = torch.stack(rows)
        before = merge(block, [Token(x, (i,), i) for i, x in enumerate(rows)], cue)
        after = reference.feed(block, reference.attend(block, before)[0])
        rows = list(rows)
        for old, new in zip(before, after, strict=True):
            for member in old.members:
                rows[member] = rows[member] + new.vector - old.vector
    return reference.read([Token(x, (i,), i) for i, x in enumerate(rows)])


@each_model
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_it_is_as_the_reference_has_it(name: str, proportional: bool, dtype: torch.dtype) -> None:
    model: Any = MODELS[name]().to(dtype)
    x = images(model, 2, dtype=dtype)
    numbers = [3, 0, 9, 24]
    wanted = torch.stack([spelled_out(model, image, numbers, proportional) for image in x])
    dense = model(x)
    vitfold.fold(model, ToMeAround(r=numbers, proportional=proportional))
    atol = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(model(x).double(), wanted, rtol=0, atol=atol)
    assert not torch.allclose(dense.double(), wanted, atol=1e-3)


@each_model
def test_nothing_merged_changes_no_bit(name: str) -> None:
    model: Any = MODELS[name]().float()
    x = images(model, dtype=torch.float32)
    dense, keys = model(x), list(model.state_dict())
    assert torch.equal(vitfold.fold(model, ToMeAround(r=0))(x), dense)
    vitfold.fold(model, ToMeAround(r=5))
    assert list(model.state_dict()) == keys
    assert torch.equal(vitfold.unfold(model)(x), dense)


@each_model
@torch.no_grad()
def test_outputs_are_dense(name: str) -> None:
    model: Any = MODELS[name]().double()
    x = images(model)
    shapes = [part.shape for part in model.forward_intermediates(x, intermediates_only=True)]
    vitfold.fold(model, ToMeAround(r=8))
    features = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(features), model(x))
    parts = model.forward_intermediates(x, intermediates_only=True)
    assert [part.shape for part in parts] == shapes
    counts: list[int] = []
    model.blocks[1].register_forward_hook(lambda _, inputs, out: counts.append(out.shape[1]))
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert counts == [features.shape[1]]


@torch.no_grad()
def test_a_trace_tells_what_the_blocks_saw() -> None:
    model: Any = vitfold.fold(vit().double(), ToMeAround(r=8, skip=1))
    trace = vitfold.trace(model, images(model))
    assert trace.counts == [[50, 50], *[[42, 42]] * 3]
    assert [whole.slots for whole in trace.maps] == [50, 42, 42, 42]
    assert trace.strip(0).size


@pytest.mark.parametrize("share", [0.9, 0.7])
def test_a_share_is_reached(share: float) -> None:
    model: Any = vit(grid=(8, 8), depth=6).float()
    x = images(model, 1, dtype=torch.float32)
    whole = vitfold.flops(model, x)
    vitfold.fold(model, "tome-around", flops=share)
    assert vitfold.flops(model, x) / whole == pytest.approx(share, abs=0.01)


@torch.no_grad()
def test_the_bound_slices_and_puts_back() -> None:
    model: Any = vitfold.fold(vit().float(), ToMeAround(r=8))
    x = images(model, dtype=torch.float32)
    assert removed(model) == (8, 8, 8, 8)
    assert bound(model)(x).shape == model(x).shape
    assert vitfold.flops(bound(model), x) < vitfold.flops(model, x)


@pytest.mark.parametrize("batch", [5, *rest(1)])
@torch.no_grad()
def test_it_compiles_and_exports(batch: int) -> None:
    model: Any = vitfold.fold(vit().float(), ToMeAround(r=8))
    x = images(model, batch, dtype=torch.float32)
    some = torch.export.Dim("batch", min=1, max=16)
    example = (images(model, 3, dtype=torch.float32),)
    program = torch.export.export(model, example, dynamic_shapes=({0: some},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for other in (program, compiled):
        torch.testing.assert_close(other(x), model(x), atol=1e-4, rtol=1e-4)


def test_it_is_trained_copied_and_saved(tmp_path: Path) -> None:
    model: Any = vitfold.fold(vit().float(), ToMeAround(r=8, proportional=False))
    x = images(model, dtype=torch.float32)
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        gradients.append([values.grad.clone() for values in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
    model.eval()
    vitfold.save(model, tmp_path)
    fresh = vitfold.load(tmp_path, vit().float())
    assert fold_of(fresh).method == ToMeAround(r=8, proportional=False)
    for other in (fresh, copy.deepcopy(model)):
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "r or flops"),
        ({"r": 4, "skip": -1}, "skip=-1"),
        ({"r": 4, "proportional": 1}, "proportional=1"),
        ({"r": 4, "skip": 9}, "skip=9"),
        ({"r": 40}, "r=40"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        vitfold.fold(vit(), ToMeAround(**options))


@pytest.mark.parametrize("window", [2, 3])
@torch.no_grad()
def test_windows_keep_merging_in_place(window: int) -> None:
    """Tokens merge with those of the same square, as many in each; 0 means over all."""
    model: Any = vit((8, 6)).float()
    x = images(model, 2, dtype=torch.float32)
    layout = find(model).layout()
    height, width = layout.grid or (0, 0)
    vitfold.fold(model, ToMeAround(r=layout.patches // 4, window=window))
    slot = vitfold.trace(model, x).maps[0].slot[:, layout.prefix :].view(-1, height, width)
    own = torch.arange(height)[:, None] // window * width + torch.arange(width) // window
    for image in slot:
        for merged in image.unique():
            assert len(own[image == merged].unique()) == 1
    vitfold.fold(model, ToMeAround(r=4, window=0))
    everywhere = model(x)
    assert torch.equal(everywhere, vitfold.fold(model, ToMeAround(r=4))(x))


def test_a_window_is_a_whole_number() -> None:
    with pytest.raises(MethodError, match="window"):
        ToMeAround(r=1, window=-1)


def test_many_patches_are_compared_in_place_by_default() -> None:
    """Over 1,024 patches, in squares of sixteen."""
    large = Layout(33 * 33, 0, (33, 33), 1)
    [step] = ToMeAround(r=300).plan(large, (300,))
    assert isinstance(step, Around)
    assert step.windows is not None
    assert max(map(len, step.windows.cells)) == 16 * 16
    [step] = ToMeAround(r=300).plan(Layout(32 * 32, 0, (32, 32), 1), (300,))
    assert isinstance(step, Around)
    assert step.windows is None
