"""DynamicViT: networks that say which patches stay."""

from typing import Any

import pytest
import torch
from support.learning import PREDICTED, close, create, each_model, mixed, same_decisions, without
from support.reference import Reference, Token
from support.rest import rest
from support.small import images, vit
from torch import Tensor

import vitfold
from vitfold import DynamicViT
from vitfold.folding.calls import fold_of, watch
from vitfold.methods import ready


def chosen_by(model: Any, prefix: int) -> Any:
    """The same in words: what a network says of each token by itself and of the mean of all."""
    learned: Any = fold_of(model).learned

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        if block not in (1, 3):
            return tokens
        net, removes = learned.predict[str(block)], (8, 6)[block // 2]
        entered = net.enter(cue[prefix:])
        mean = entered[:, net.side :].mean(dim=0)
        stays = [float(net.out(torch.cat([row[: net.side], mean]))[0]) for row in entered]
        order = sorted(range(len(stays)), key=lambda patch: -stays[patch])
        kept = sorted(order[: len(stays) - removes])
        return [*tokens[:prefix], *(tokens[prefix + patch] for patch in kept)]

    return reduce


@each_model
@torch.no_grad()
def test_dynamicvit_is_as_the_reference_has_it(name: str) -> None:
    model = create(name, PREDICTED)
    x = mixed(model, 3)
    reference = Reference(model, "x", proportional=False)
    wanted = reference.logits(x, chosen_by(model, model.num_prefix_tokens))
    close(model(x), wanted)
    close(create(name, PREDICTED, torch.float32)(x.float()).double(), wanted, 1e-4)


@each_model
@torch.no_grad()
def test_dynamicvit_masks_what_it_removes(name: str) -> None:
    model = create(name, PREDICTED)
    same_decisions(model, mixed(model))
    counts = vitfold.trace(model, mixed(model)).counts
    tokens = 49 + model.num_prefix_tokens
    assert [numbers[0] for numbers in counts] == [tokens, tokens - 8, tokens - 8, tokens - 14]


def test_dynamicvit_samples_and_learns() -> None:
    """Gradients reach networks and model; the shares that stay go where they are asked to."""
    model = create("vit", DynamicViT(r=[0, 5, 0, 3], blocks=(1, 3)), torch.float32).train()
    learned: Any = fold_of(model).learned
    x = images(model, 8).float()
    optimizer = torch.optim.AdamW(learned.parameters(), lr=3e-3)
    misses = []
    for step in range(150):
        torch.manual_seed(step)
        with watch() as runs:
            model(x)
        loss = learned.loss(runs[0])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(bool(p.grad.abs().sum() > 0) for p in learned.parameters())
            grad = model.blocks[0].attn.qkv.weight.grad
            assert grad is not None
            assert bool(grad.abs().sum() > 0)
        optimizer.step()
        misses.append(float(loss.detach()))
    kept = learned.figures(runs[0])["kept"]
    assert kept == pytest.approx([44 / 49, 41 / 49], abs=0.12)
    assert sum(misses[-10:]) < sum(misses[:10]) / 3


def test_dynamicvit_reaches_its_share_and_is_not_ready() -> None:
    model = vit(grid=(8, 8), depth=6)
    x = images(model, 1).float()
    whole = vitfold.flops(model, x)
    vitfold.fold(model, DynamicViT(flops=0.7))
    assert abs(vitfold.flops(model, x) / whole - 0.7) < 0.01
    assert "dynamicvit" not in ready()
    assert "evit" in ready()


@pytest.mark.parametrize("batch", [7, *rest(1)])
@torch.no_grad()
def test_dynamicvit_compiles_and_exports(batch: int) -> None:
    model = create("vit", PREDICTED, torch.float32)
    x = images(model, batch).float()
    some = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(
        model, (images(model, 3).float(),), dynamic_shapes=({0: some},)
    ).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for other in (program, compiled):
        torch.testing.assert_close(other(x), model(x), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_share_is_the_same_in_training_mode() -> None:
    model = vit(grid=(8, 8), depth=6)
    schedule = fold_of(vitfold.fold(model.eval(), DynamicViT(flops=0.7))).schedule
    assert fold_of(vitfold.fold(model.train(), DynamicViT(flops=0.7))).schedule == schedule
    assert model.training


@pytest.mark.parametrize("make", [vit, without], ids=["class token", "average"])
def test_one_patch_stays_whatever_is_drawn(make: Any) -> None:
    """With networks that all but surely drop every patch."""
    model = vitfold.fold(make(grid=(2, 2)), DynamicViT(r=1, blocks=(1, 2))).train()
    learned: Any = fold_of(model).learned
    with torch.no_grad():
        for predictor in learned.predict.values():
            predictor.out[4].bias.copy_(torch.tensor([-30.0, 30.0]))
    torch.manual_seed(0)
    with watch() as runs:
        logits = model(images(model, 16).float())
    (logits.square().sum() + learned.loss(runs[0])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert bool(logits.isfinite().all())
    left: Any = runs[0].states[-1]
    assert left.here[:, left.prefix :].sum(1).tolist() == [1] * 16
