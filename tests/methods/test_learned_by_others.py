"""DynamicViT and A-ViT: methods of others that learn."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.reference import Reference, Token
from support.small import MODELS, images, vit
from support.training import Blobs
from torch import Tensor, nn

import vitfold
from vitfold import AViT, DynamicViT, MethodError
from vitfold.folding.calls import fold_of, watch
from vitfold.methods import ready
from vitfold.train import Recipe, train
from vitfold.train.outline import Settings, create_accelerator

each_model = pytest.mark.parametrize("name", MODELS)
each_reader = pytest.mark.parametrize("name", [name for name in MODELS if name != "eva"])
"""Models that read out class tokens."""

PREDICTED = DynamicViT(r=[0, 8, 0, 6], blocks=(1, 3))


def mixed(model: Any, batch: int = 4) -> Tensor:
    """Images of several contrasts, so that counts differ."""
    dtype = next(model.parameters()).dtype
    levels = torch.linspace(0.2, 1.5, batch, dtype=dtype)
    return images(model, batch, dtype=dtype) * levels[:, None, None, None]


def made(name: str, method: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(0)
    return vitfold.fold(MODELS[name](**options).to(dtype), method)


def halting(name: str = "vit", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Tokens halt from the second block on."""
    return made(name, AViT(gamma=1.0, beta=-1.0, **options), dtype)


def close(ours: Tensor, wanted: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)


def same_decisions(model: Any, x: Tensor) -> None:
    """Masked as in training, removed, and each image alone."""
    logits, features, trace = model(x), model.forward_features(x), vitfold.trace(model, x)
    with vitfold.masked():
        close(model(x), logits)
        close(model.forward_features(x), features)
        kept = vitfold.trace(model, x)
    assert kept.counts == trace.counts
    for ours, theirs in zip(kept.maps, trace.maps, strict=True):
        assert torch.equal(ours.slot, theirs.slot)
    close(torch.cat([model(image[None]) for image in x]), logits)
    close(model(x.flip(0)), logits.flip(0))


# DynamicViT.


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
    model = made(name, PREDICTED)
    x = mixed(model, 3)
    reference = Reference(model, "x", proportional=False)
    wanted = reference.logits(x, chosen_by(model, model.num_prefix_tokens))
    close(model(x), wanted)
    close(made(name, PREDICTED, torch.float32)(x.float()).double(), wanted, 1e-4)


@each_model
@torch.no_grad()
def test_dynamicvit_masks_what_it_removes(name: str) -> None:
    model = made(name, PREDICTED)
    same_decisions(model, mixed(model))
    counts = vitfold.trace(model, mixed(model)).counts
    tokens = 49 + model.num_prefix_tokens
    assert [numbers[0] for numbers in counts] == [tokens, tokens - 8, tokens - 8, tokens - 14]


def test_dynamicvit_samples_and_learns() -> None:
    """Gradients reach networks and model; the shares that stay go where they are asked to."""
    model = made("vit", DynamicViT(r=[0, 5, 0, 3], blocks=(1, 3)), torch.float32).train()
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


# A-ViT.


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
    found = [halted(model, image) for image in x]
    counts = vitfold.trace(model, x).counts
    assert [list(numbers) for numbers in zip(*counts, strict=True)] == [n for _, n, _ in found]
    close(logits, torch.stack([logits for logits, _, _ in found]))
    notes: Any = runs[0].last.notes
    assert float(notes.ponder) == pytest.approx(sum(p for _, _, p in found) / len(x), abs=1e-9)
    assert len({tuple(n) for _, n, _ in found}) > 1, "images keep numbers of their own"
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
    model = made("vit", AViT(gamma=0.0, beta=1e4))
    x = mixed(model)
    assert vitfold.trace(model, x).counts == [[2] * 4] * 4
    same_decisions(model, x)
    assert model(x[:0]).shape == (0, 7)


def test_avit_learns_to_stop() -> None:
    """Nearer to the prior; what is read out has gradients too."""
    model = made("vit", AViT(gamma=0.5, beta=-3.0, depth=2.0, ponder=0.0), torch.float32).train()
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


# Both.

KINDS = {"dynamicvit": PREDICTED, "avit": AViT(gamma=1.0, beta=-1.0, flops=0.8)}


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
def test_they_are_saved_copied_and_taken_off(method: Any, tmp_path: Path) -> None:
    model = made("vit", method, torch.float32)
    x = images(model, 2).float()
    with torch.no_grad():
        for values in fold_of(model).learned.parameters():  # type: ignore[union-attr]
            values.add_(0.1)
        said = model(x)
        vitfold.save(model, tmp_path / "plan", backbone=True)
        assert torch.equal(vitfold.load(tmp_path / "plan", vit())(x), said)
        assert torch.equal(copy.deepcopy(model)(x), said)
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
        train(model, recipe, images, Blobs(6), settings=Settings(place, resume=True, every=2),
              accelerator=create_accelerator("cpu"))  # fmt: skip
        return model.state_dict()

    wanted = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=30)
    found = run(tmp_path / "b")
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


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


@pytest.mark.parametrize("beta", [-9.0, 2.0])
def test_avit_is_brought_to_its_share(beta: float, tmp_path: Path) -> None:
    """From too slow a halting, and from too fast a one."""
    model = vit(grid=(8, 8), num_classes=3).float()
    vitfold.fold(model, AViT(flops=0.8, gamma=0.5, beta=beta))
    outcome = train(
        model, Recipe(epochs=1, batch_size=8), Blobs(), settings=Settings(tmp_path / "t"),
        accelerator=create_accelerator("cpu"), calibration=Blobs(16),
    )  # fmt: skip
    assert outcome.reached == pytest.approx(0.8, abs=0.02)


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


def without(**options: Any) -> nn.Module:
    return vit(class_token=False, global_pool="avg", **options)


def registers() -> nn.Module:
    return vit(class_token=False, global_pool="avg", reg_tokens=4)


@pytest.mark.parametrize(("wrong", "says"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(wrong: Any, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        wrong()


def test_avit_has_no_form_of_one_shape() -> None:
    model = halting(dtype=torch.float32)
    x = images(model, 2).float()
    with pytest.raises(MethodError, match="as many tokens"):
        vitfold.freeze(model, x)
    with pytest.raises(Exception, match="fixed numbers"):
        torch.export.export(model, (x,))


@pytest.mark.parametrize("batch", [1, 7])
@torch.no_grad()
def test_dynamicvit_compiles_and_exports(batch: int) -> None:
    model = made("vit", PREDICTED, torch.float32)
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
    left: Any = runs[0].books[-1]
    assert left.here[:, left.prefix :].sum(1).tolist() == [1] * 16


@pytest.mark.parametrize("method", [*KINDS.values(), vitfold.LTMP(merge_threshold=0.4)], ids=str)
def test_what_is_learned_stays_precise_in_a_half_precise_model(method: Any, tmp_path: Path) -> None:
    model = made("vit", method, torch.float32).bfloat16()
    x = images(model, 2).bfloat16()
    learned = fold_of(model).learned
    assert learned is not None
    assert {values.dtype for values in learned.parameters()} == {torch.float32}
    with torch.no_grad():
        said = model(x)
        vitfold.save(model, tmp_path, backbone=True)
        assert torch.equal(vitfold.load(tmp_path, vit().bfloat16())(x), said)


def test_a_plan_for_other_blocks_is_refused(tmp_path: Path) -> None:
    model = vitfold.fold(vit(), vitfold.EViT(r=3, blocks=(1,)))
    vitfold.save(model, tmp_path)
    text = (tmp_path / "plan.json").read_text()
    changed = text.replace('"blocks": [\n      1\n    ]', '"blocks": [\n      50\n    ]')
    assert changed != text
    (tmp_path / "plan.json").write_text(changed)
    with pytest.raises(vitfold.PlanError, match=r"plan\.json: blocks=\[50\]"):
        vitfold.load(tmp_path, vit())
