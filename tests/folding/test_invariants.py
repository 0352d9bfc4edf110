"""What must not change: a model with nothing to reduce, an image because of its neighbours, a
gradient because it is recomputed, a call because of another one."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import MODELS, deit, dino, dino3, eva, images, vit
from torch import Tensor, nn

import vitfold
from vitfold import DFE, LGTM, Drop, EViT, MergeDrop, Method, ToMe, Ward
from vitfold.folding.calls import watch
from vitfold.tokens.cues import CUES

METHODS: dict[str, Method] = {
    "tome": ToMe(r=8),
    "dfe": DFE(r=8, skip=1),
    "lgtm": LGTM(r=8, skip=0),
    "drop": Drop(r=8, cue="x_attn"),
    "random": ToMe(r=8, cue="random"),
    "ward": Ward(r=8),
    "mergedrop": MergeDrop(r=5, drop=3),
    "unweighted": ToMe(r=8, proportional=False),
    "evit": EViT(r=8, blocks=(0, 2)),
}

each_model = pytest.mark.parametrize("name", MODELS)
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def exactly(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)


def folded(name: str, method: Method, **options: Any) -> Any:
    return vitfold.fold(MODELS[name](**options).double(), method)


# Nothing to reduce.


@each_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_nothing_to_reduce_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype)
    x = images(model, dtype=dtype)
    logits, features = model(x), model.forward_features(x)
    for method in (ToMe(r=0), DFE(r=[0, 0]), LGTM(r=[]), Drop(r=(0, 1))):
        vitfold.fold(model, method)
        assert torch.equal(model(x), logits)
        assert torch.equal(model.forward_features(x), features)


def test_blocks_before_the_first_reduction_change_no_bit() -> None:
    model = vit(depth=4)
    x = images(model, dtype=torch.float32)
    dense = model.forward_intermediates(x, intermediates_only=True)
    vitfold.fold(model, ToMe(r=8, skip=2))
    after = model.forward_intermediates(x, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(dense, after, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


# Tokens that are the same.


@pytest.mark.parametrize("pool", ["token", "avg", "map"])
@pytest.mark.parametrize("method", [ToMe(r=6), LGTM(r=[6, 4], skip=0)], ids=["tome", "lgtm"])
def test_merging_identical_tokens_changes_nothing(pool: str, method: Method) -> None:
    """The left half of the image is one colour, the right half another, and no patch knows where
    it is: merging takes what is identical, and sizes have to make up for it."""
    model: Any = vit((6, 6), depth=4, pos_embed="none", global_pool=pool).double()
    x = images(model)[:, :, :4, :4].repeat(1, 1, 6, 6)
    x[:, :, :, 12:] *= -1
    dense = model(x)
    exactly(vitfold.fold(model, method)(x), dense)
    with pytest.raises(AssertionError):
        exactly(vitfold.fold(model, Drop(r=6))(x), dense, atol=1e-3)
    if pool != "map":
        with pytest.raises(AssertionError):
            exactly(vitfold.fold(model, ToMe(r=6, proportional=False))(x), dense, atol=1e-3)


# Neighbours.


@each_model
@each_method
def test_a_batch_gives_each_image_what_it_gets_alone(name: str, method: Method) -> None:
    model = folded(name, method)
    x = images(model, batch=4)
    alone = torch.cat([model(image.unsqueeze(0)) for image in x])
    exactly(model(x), alone)
    exactly(model(x[[2, 0, 3, 1]]), alone[[2, 0, 3, 1]])


@each_method
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e300])
def test_what_is_not_finite_harms_no_neighbour(method: Method, bad: float) -> None:
    for name in ("vit", "eva"):
        dense = MODELS[name]().double()
        x = images(dense, batch=3)
        x[1, 0, 9, 9] = bad
        expected = dense(x).isnan()
        model = vitfold.fold(dense, method)
        logits = model(x)
        assert not (logits.isnan() & ~expected).any()
        exactly(logits[[0, 2]], model(x[[0, 2]]))


@settings(max_examples=40)
@given(
    st.sampled_from([ToMe, DFE, LGTM, Drop, Ward]),
    st.sampled_from([0.0, 1.0, -3.0, 1e12]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(CUES),
)
def test_flat_images_stay_finite_on_any_grid(
    kind: Any, value: float, grid: tuple[int, int], cue: str
) -> None:
    model = vit(grid, depth=3, pos_embed="none")
    x = torch.full((2, 3, grid[0] * 4, grid[1] * 4), value)
    patches = grid[0] * grid[1]
    for r in {min(1, patches // 2), patches // 2}:
        assert vitfold.fold(model, kind(r=r, skip=0, cue=cue))(x).isfinite().all()


# Calls that overlap.


@pytest.mark.parametrize("name", ["vit", "dino3"])
def test_two_threads_may_run_one_model(name: str) -> None:
    model = folded(name, LGTM(r=6, skip=0))
    batches = [images(model, batch=1 + seed % 3, seed=seed) for seed in range(12)]
    alone = [model(x) for x in batches]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(model, batches))
    for a, b in zip(alone, together, strict=True):
        exactly(a, b)


def test_a_call_inside_a_call_is_a_call_of_its_own() -> None:
    model: Any = folded("vit", ToMe(r=6))
    x, other = images(model), images(model, batch=1, seed=5)
    expected, inner = model(x), list[Tensor]()

    def call_once(*_: object) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner.append(model(other))

    handle = model.blocks[2].mlp.register_forward_hook(call_once)
    exactly(model(x), expected)
    handle.remove()
    exactly(inner[1], model(other))


# Gradients.


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return grads | {"images": x.grad}


@each_model
@each_method
def test_gradients_flow_and_checkpointing_gives_the_same(name: str, method: Method) -> None:
    model = folded(name, method)
    x = images(model)
    plain = gradients(model, x)
    assert plain.keys() == {"images", *(name for name, _ in model.named_parameters())}
    for grad in plain.values():
        assert grad.isfinite().all()
        assert grad.abs().max() > 0
    model.set_grad_checkpointing()
    model.train()
    recomputed = gradients(model, x)
    assert recomputed.keys() == plain.keys()
    for key, grad in recomputed.items():
        exactly(grad, plain[key], atol=1e-12)


@pytest.mark.parametrize("method", [ToMe(r=4), LGTM(r=4, skip=0), Drop(r=4)], ids=str)
def test_gradients_are_the_slopes_of_the_logits(method: Method) -> None:
    model = vitfold.fold(vit((4, 3), depth=3).double(), method)
    x = images(model, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(model, x, fast_mode=True)


def test_frozen_models_give_gradients_to_images_alone() -> None:
    model = folded("vit", ToMe(r=8)).requires_grad_(False)
    x = images(model).requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


# Precision and training.


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_finite(method: Method, dtype: torch.dtype) -> None:
    for build in (vit, deit, dino, eva, dino3):
        model = vitfold.fold(build(), method)
        x = images(model, dtype=torch.float32)
        with torch.autocast("cpu", dtype):
            logits = model(x)
        assert logits.isfinite().all()
        assert logits.shape == (2, 7)


def test_low_precision_is_near_where_decisions_are_the_same() -> None:
    model = vitfold.fold(vit(), ToMe(r=8, cue="random"))
    x = images(model, dtype=torch.float32)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(model.bfloat16()(x.bfloat16()).float(), expected, rtol=0, atol=0.2)


@each_model
@each_method
def test_training_with_stochastic_depth_and_dropout_runs(name: str, method: Method) -> None:
    options = {"drop_path_rate": 0.4, "attn_drop_rate": 0.2, "proj_drop_rate": 0.2}
    model = vitfold.fold(MODELS[name](drop_rate=0.2, **options), method).train()
    x = images(model, batch=3, dtype=torch.float32)
    torch.manual_seed(0)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    first.sum().backward()
    for p in model.parameters():
        assert p.grad is None or p.grad.isfinite().all()
    model.eval()
    assert torch.equal(model(x), model(x))


# The state.


@pytest.mark.parametrize("cue", ["k", "x_pre"])
def test_dropping_weighs_nothing(cue: str) -> None:
    model = vitfold.fold(vit(), Drop(r=8, cue=cue))
    with watch() as runs:
        model(images(model, dtype=torch.float32))
    assert runs[0].last.size is None
    assert all(step.fate == "dropped" for step in runs[0].last.maps)


@each_model
@each_method
def test_every_token_is_somewhere_and_prefix_tokens_stay(name: str, method: Method) -> None:
    model = folded(name, method)
    x = images(model, batch=3)
    with watch() as runs:
        model(x)
    state = runs[0].last
    prefix, whole = state.prefix, state.whole
    dropped = (whole.slot < 0).sum(1)
    sizes = state.sizes()
    assert torch.equal(sizes.sum(1).long() + dropped, torch.full((3,), state.tokens))
    assert whole.slot[:, :prefix].tolist() == [list(range(prefix))] * 3
    assert (sizes[:, :prefix] == 1).all()
    removed = sum(step.removes for step in runs[0].plan if step)
    assert state.length == state.tokens - removed == whole.slots
