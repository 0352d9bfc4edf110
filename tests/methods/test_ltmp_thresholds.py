"""LTMP's thresholds: their gradients, saved and loaded, frozen to fixed numbers."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ltmp import (
    MERGE,
    PRUNE,
    VARIANTS,
    create,
    each_variant,
    exactly,
    mixed_images,
)
from support.small import images, vit
from torch import Tensor

import vitfold
from vitfold import LTMP, ToMe
from vitfold.errors import DataError, MethodError, PlanError
from vitfold.folding.calls import fold_of, watch
from vitfold.train.fit import fit_learned

# Gradients.


def test_gradients_reach_images_through_packed_tokens() -> None:
    model = create("vit", VARIANTS["both"], depth=2)
    x = mixed_images(model, 2).requires_grad_()
    for values in model.parameters():
        values.requires_grad_(False)
    direction = torch.randn(x.shape, dtype=x.dtype)
    step = 1e-6
    slope = (model(x + step * direction) - model(x - step * direction)).sum() / (2 * step)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("mode", [True, False])
def test_checkpointing_gives_the_same_gradients(mode: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = create("vit", VARIANTS["both"]).train(mode)
        model.set_grad_checkpointing(checkpointing)
        model(mixed_images(model)).square().sum().backward()
        gradients.append([values.grad for values in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.allclose(plain, again, rtol=0, atol=1e-9)


def spelled_out(model: Any, x: Tensor, merge: Tensor, prune: Tensor, tau: float = 0.1) -> Any:
    """A training pass of a plain ViT in full matrices: logits, and the mask after every block."""
    heads, eps = model.blocks[0].attn.num_heads, 1e-5
    t = model._pos_embed(model.patch_embed(x))
    batch, n, d = t.shape
    mask, size = t.new_ones(batch, n), t.new_ones(batch, n)
    masks = []

    def straight(v: Tensor, theta: Tensor) -> Tensor:
        soft = torch.sigmoid((v - theta) / tau)
        return (v > theta).double() + soft - soft.detach()

    for block, (merging, pruning) in zip(model.blocks, zip(merge, prune, strict=True), strict=True):
        qkv = block.attn.qkv(block.norm1(t)).view(batch, n, 3, heads, d // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        a = q @ k.transpose(-1, -2) / (d // heads) ** 0.5 + size.log()[:, None, None]
        e = (a - a.amax(-1, keepdim=True).detach()).exp() * mask[:, None, None]
        p = (e + eps / n) / (e.sum(-1, keepdim=True) + eps)
        t = t + block.attn.proj((p @ v).transpose(1, 2).reshape(batch, n, d))
        alive = mask.detach() > 0.5
        visits = (p.mean(1) * alive[:, :, None]).sum(1) / alive.sum(1, keepdim=True)
        key = torch.nn.functional.normalize(k.mean(1), dim=-1)
        rank = alive.cumsum(1) - 1
        patch = alive & (torch.arange(n) > 0)
        pairs = (patch & (rank % 2 == 0))[:, :, None] & (patch & (rank % 2 == 1))[:, None]
        best, partner = (key @ key.transpose(1, 2)).masked_fill(~pairs, -1e9).max(-1)
        goes = straight(best, merging) * pairs.any(-1)
        merged = goes.detach() > 0.5
        into = torch.where(merged, partner, torch.arange(n))
        onto = torch.nn.functional.one_hot(into, n).double() * alive[:, :, None] * size[:, :, None]
        onto = torch.where(alive[:, :, None], onto, torch.diag_embed(size))
        total = onto.sum(1)
        fresh = (onto.transpose(1, 2) @ t) / total.clamp(min=1)[:, :, None]
        t = torch.where(merged[:, :, None] | ~alive[:, :, None], t, fresh)
        size = torch.where(merged | ~alive, size, total)
        visits = visits.scatter_reduce(1, into, visits, "amax")
        stays = straight(visits, pruning)
        mask = mask * (1 - goes) * torch.where(patch & ~merged, stays, torch.ones_like(stays))
        masks.append(mask)
        t = t + block.mlp(block.norm2(t))
    return model.head(model.norm(t)[:, 0]), masks


def test_thresholds_get_the_gradients_of_the_paper() -> None:
    method = LTMP(flops=0.6, merge_threshold=MERGE, prune_threshold=PRUNE)
    model = create("vit", method).train()
    x, labels = mixed_images(model), torch.tensor([0, 1, 2, 3])
    learned: Any = fold_of(model).learned
    with watch() as runs:
        logits = model(x)
    penalty = learned.loss(runs[0])
    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1) + penalty
    ours = torch.autograd.grad(loss, list(learned.parameters()))

    merge, prune = (values.detach().clone().requires_grad_() for values in learned.parameters())
    dense = vitfold.unfold(copy.deepcopy(model))
    expected, masks = spelled_out(dense, x, merge, prune)
    exactly(logits, expected)
    n, d = 50, 48
    means = [torch.tensor(1.0).double(), *(mask.mean() for mask in masks)]
    share = sum(
        (2 * a * n * d**2 + (a * n) ** 2 * d + 4 * b * n * d**2) / (6 * n * d**2 + n**2 * d)
        for a, b in itertools.pairwise(means)
    ) / len(masks)
    report = torch.nn.functional.cross_entropy(expected, labels, label_smoothing=0.1)
    exactly(penalty, 10 * (share - 0.6) ** 2)
    theirs = torch.autograd.grad(report + 10 * (share - 0.6) ** 2, [merge, prune])
    for a, b in zip(ours, theirs, strict=True):
        assert a.abs().max() > 0
        exactly(a, b, 1e-8)


# Saved and loaded.


@each_variant
@pytest.mark.parametrize("backbone", [False, True])
def test_thresholds_come_back(method: LTMP, backbone: bool, tmp_path: Path) -> None:
    model = create("vit", method, torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    vitfold.save(model, tmp_path, backbone=backbone)
    held = load_file(tmp_path / "weights.safetensors")
    names = {f"vitfold.{act}" for act in method.acts}
    assert names <= set(held)
    assert backbone == (len(held) > len(names))
    fresh = vitfold.load(tmp_path, vit())
    assert fold_of(fresh).method == method
    assert torch.equal(fresh(x), model(x))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    vitfold.save(create("vit", VARIANTS["both"], torch.float32), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vitfold.merge": torch.full((4,), 1.5)}, "vitfold.merge has values out of bounds"),
        ({"vitfold.merge": torch.full((4,), float("nan"))}, "out of bounds"),
        ({"vitfold.merge": torch.zeros(5)}, r"vitfold.merge has shape \[5\]"),
        ({"vitfold.merge": torch.zeros(4, dtype=torch.int64)}, "dtype int64"),
        ({"vitfold.merge": None}, "vitfold.merge is missing"),
        ({"vitfold.other": torch.zeros(4)}, "vitfold.other is unknown"),
        ({"head.bias": torch.zeros(7)}, "head.bias is unknown"),
    ],
)
def test_what_was_not_learned_is_refused(plan: Path, change: Any, message: str) -> None:
    file = plan / "weights.safetensors"
    tensors = load_file(file) | change
    save_file({name: values for name, values in tensors.items() if values is not None}, file)
    model = vit()
    keys = list(model.state_dict())
    with pytest.raises(PlanError, match=message):
        vitfold.load(plan, model)
    assert list(model.state_dict()) == keys


def test_a_plan_without_its_thresholds_is_refused(plan: Path) -> None:
    data = json.loads((plan / "plan.json").read_text())
    data["weights"] = None
    (plan / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"vitfold\.merge is missing"):
        vitfold.load(plan, vit())


# Frozen.


@pytest.mark.parametrize("name", ["vit", "dino", "eva"])
@pytest.mark.parametrize("order", ["merge_first", "prune_first"])
def test_frozen_numbers_are_the_means(name: str, order: str) -> None:
    method = LTMP(order=order, merge_threshold=MERGE, prune_threshold=PRUNE)
    model = create(name, method)
    x = mixed_images(model)
    means = [sum(counts) / len(x) for counts in vitfold.trace(model, x).counts]
    again = vitfold.freeze(model, [x[:2], x[2:]])
    assert again is model
    assert not hasattr(model, "vitfold")
    for counts, mean in zip(vitfold.trace(model, x).counts, means, strict=True):
        assert set(counts) == {counts[0]}
        assert counts[0] == pytest.approx(mean, abs=1.01)


def test_frozen_numbers_come_from_batches_of_any_form() -> None:
    x = mixed_images(create("vit", VARIANTS["both"]))
    inputs: list[Any] = [x, {"x": x}, [{"x": x[:1]}, {"x": x[1:]}], [(x, torch.zeros(len(x)))]]
    result = [vitfold.freeze(create("vit", VARIANTS["both"]), images) for images in inputs]
    assert len({str(fold_of(model).method) for model in result}) == 1


def test_nothing_is_taken_from_images_that_are_no_numbers() -> None:
    model = create("vit", VARIANTS["both"])
    x = mixed_images(model)
    with pytest.raises(DataError, match="batch 1 holds values that are no numbers"):
        vitfold.freeze(model, [x, x * torch.nan])
    assert fold_of(model).method == VARIANTS["both"]


def test_frozen_numbers_do_not_depend_on_how_it_is_evaluated() -> None:
    models = [create("vit", VARIANTS["both"]) for _ in range(2)]
    x = mixed_images(models[0])
    vitfold.freeze(models[0], x)
    with vitfold.masked():
        vitfold.freeze(models[1], x)
    assert fold_of(models[0]).method == fold_of(models[1]).method
    assert any(fold_of(models[0]).schedule)


def test_a_share_is_reached_by_whatever_scale_it_takes() -> None:
    model = vit((14, 14))
    x = images(model, 4, dtype=torch.float32)
    vitfold.fold(model, LTMP(prune=False, merge_threshold=0.98, flops=0.8))
    assert fit_learned(model, 0.8, [x])[0] == pytest.approx(0.8, abs=0.02)
    learned: Any = fold_of(model).learned
    assert float(learned.merge.detach()[0]) < 1 - 8 * 0.02  # by more than eight, here


def test_what_is_alike_already_is_not_frozen() -> None:
    model = vitfold.fold(vit(), ToMe(r=3))
    with pytest.raises(MethodError, match="fixed numbers already"):
        vitfold.freeze(model, images(model))
    with pytest.raises(DataError, match="no images"):
        vitfold.freeze(vitfold.fold(vit(), "ltmp"), [])
