"""A-ViT: tokens that halt."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.learning import close, create, each_reader, halting, mixed, same_decisions
from support.reference import Reference, Token
from support.small import MODELS, images, vit
from support.training import Blobs, training
from torch import Tensor

import vitfold
from vitfold import AViT, MethodError
from vitfold.folding.calls import fold_of, watch
from vitfold.train import Recipe


def halted(model: Any, image: Tensor) -> tuple[Tensor, list[int], float]:
    """The same in words: logits of one image, the tokens after every block, and the ponder cost."""
    learned: Any = fold_of(model).learned
    gamma, beta, eps = float(learned.gamma), float(learned.beta), learned.method.eps
    reference, prefix = Reference(model, "x", proportional=False), model.num_prefix_tokens
    tokens = [Token(x, (i,), i) for i, x in enumerate(reference.embed(image))]
    total = [0.0] * len(tokens)
    out = [torch.zeros_like(tokens[i].vector) for i in range(prefix)]
    counts, ponder, whole = [], 0.0, len(tokens)
    for block in range(reference.depth):
        tokens = reference.feed(block, reference.attend(block, tokens)[0])
        last, gone = block == reference.depth - 1, []
        for token in tokens:
            place = token.place
            if total[place] >= 1 - eps:
                continue
            score = float(torch.sigmoid(gamma * token.vector[0] + beta))
            stops = last or total[place] + score >= 1 - eps
            weight = 1 - total[place] if stops else score
            ponder += 1 + (weight if stops else 0)
            if place < prefix:
                out[place] = out[place] + weight * token.vector
            total[place] = 1.0 if stops else total[place] + score
            if stops and not last and place >= prefix:
                gone.append(place)
        left = [token for token in tokens if token.place not in gone]
        if all(token.place < prefix for token in left):
            left.append(next(token for token in tokens if token.place in gone))
        tokens = left
        counts.append(len(tokens))
    tokens = [Token(out[i], t.members, t.place) if i < prefix else t for i, t in enumerate(tokens)]
    return reference.read(tokens), counts, ponder / whole


@each_reader
@torch.no_grad()
def test_avit_is_as_the_reference_has_it(name: str) -> None:
    model = halting(name)
    x = mixed(model)
    with watch() as runs:
        logits = model(x)
    result = [halted(model, image) for image in x]
    counts = vitfold.trace(model, x).counts
    assert [list(numbers) for numbers in zip(*counts, strict=True)] == [n for _, n, _ in result]
    close(logits, torch.stack([logits for logits, _, _ in result]))
    notes: Any = runs[0].last.notes
    assert float(notes.ponder) == pytest.approx(sum(p for _, _, p in result) / len(x), abs=1e-9)
    assert len({tuple(n) for _, n, _ in result}) > 1, "images keep numbers of their own"
    close(halting(name, torch.float32)(x.float()).double(), logits, 1e-4)


@each_reader
@torch.no_grad()
def test_avit_masks_what_it_removes(name: str) -> None:
    model = halting(name)
    same_decisions(model, mixed(model))


@each_reader
@torch.no_grad()
def test_where_nothing_halts_avit_is_the_dense_model(name: str) -> None:
    model = MODELS[name]()
    x = images(model, 2, dtype=next(model.parameters()).dtype)
    dense = model(x)
    assert torch.equal(vitfold.fold(model, AViT(beta=-1e4))(x), dense)
    assert torch.equal(vitfold.unfold(model)(x), dense)


@torch.no_grad()
def test_one_patch_stays_where_all_would_halt() -> None:
    model = create("vit", AViT(gamma=0.0, beta=1e4))
    x = mixed(model)
    assert vitfold.trace(model, x).counts == [[2] * 4] * 4
    same_decisions(model, x)
    assert model(x[:0]).shape == (0, 7)


def test_avit_learns_to_stop() -> None:
    """Nearer to the prior; what is read out has gradients too."""
    model = create("vit", AViT(gamma=0.5, beta=-3.0, depth=2.0, ponder=0.0), torch.float32).train()
    learned: Any = fold_of(model).learned
    x, labels = images(model, 8).float(), torch.arange(8) % 7
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    priors = []
    for step in range(40):
        with watch() as runs:
            logits = model(x)
        prior = learned.loss(runs[0])
        optimizer.zero_grad()
        if step == 0:
            loss = F.cross_entropy(logits, labels)
            slopes = torch.autograd.grad(loss, list(learned.parameters()), retain_graph=True)
            assert all(bool(slope.abs() > 0) for slope in slopes)
        prior.backward()
        optimizer.step()
        priors.append(float(prior.detach()))
    assert priors[-1] < priors[0] / 2
    assert {"ponder", "tokens"} <= learned.figures(runs[0]).keys()


def test_avit_recomputes_what_it_computed() -> None:
    grads = []
    for again in (False, True):
        model = halting("vit", depth=2.0).train()
        model.set_grad_checkpointing(again)
        with watch() as runs:
            loss = model(mixed(model)).square().sum()
        learned: Any = fold_of(model).learned
        (loss + learned.loss(runs[0])).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*grads, strict=True):
        close(recomputed, plain)


@pytest.mark.parametrize("beta", [-9.0, 2.0])
def test_avit_is_brought_to_its_share(beta: float, tmp_path: Path) -> None:
    """From too slow a halting, and from too fast a one."""
    model = vit(grid=(8, 8), num_classes=3).float()
    vitfold.fold(model, AViT(flops=0.8, gamma=0.5, beta=beta))
    recipe = Recipe(epochs=1, batch_size=8)
    outcome = training(model, recipe, Blobs(), tmp_path / "t", calibration=Blobs(16))
    assert outcome.share == pytest.approx(0.8, abs=0.02)


def test_avit_has_no_form_of_one_shape() -> None:
    model = halting(dtype=torch.float32)
    x = images(model, 2).float()
    with pytest.raises(MethodError, match="as many tokens"):
        vitfold.freeze(model, x)
    with pytest.raises(Exception, match="fixed numbers"):
        torch.export.export(model, (x,))
