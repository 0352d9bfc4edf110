"""Folded models against the reference: the same tokens in the same slots, and the same logits."""

from typing import Any

import pytest
import torch
from support.reference import Reduce, Reference, drop, evit, lgtm, mergedrop, ramp, tome, ward
from support.small import MODELS, eva, images, vit
from torch import Tensor, nn

import vitfold
from vitfold import DFE, LGTM, Drop, EViT, MergeDrop, Method, ToMe, Ward
from vitfold.folding.calls import watch
from vitfold.tokens.cues import CUES, random
from vitfold.tokens.tokenmap import DROPPED

DEPTH = 6
GRIDS = {"square": (7, 7), "even": (8, 8), "wide": (5, 9), "tall": (11, 4)}
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4}


def agree(
    model: Any, method: Method, reduce: Reduce, dtype: torch.dtype = torch.float64, batch: int = 2
) -> None:
    """Fold a model; its last block has to hold the same tokens as the reference, made of the same
    original ones, and its logits have to be as near as the precision allows."""
    model = model.to(dtype)
    x = images(model, batch, dtype=dtype)
    reference = Reference(model, getattr(method, "cue", "k"), method.proportional)
    slots = [spelled_out(reference, image, reduce) for image in x]
    with watch() as runs:
        logits = vitfold.fold(model, method)(x)
    assert runs[0].last.whole.slot.tolist() == slots
    expected = reference.logits(x, reduce)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=CLOSE[dtype])


def spelled_out(reference: Reference, image: Tensor, reduce: Reduce) -> list[int]:
    """The slot of every original token, -1 for dropped."""
    left = reference.run(image.double(), reduce)
    slot = {member: i for i, token in enumerate(left) for member in token.members}
    return [slot.get(token, DROPPED) for token in range(len(reference.embed(image.double())))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_the_reference_itself_is_the_dense_model(name: str, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH).to(dtype)
    x = images(model, dtype=dtype)
    expected = Reference(model).logits(x)
    torch.testing.assert_close(model(x).double(), expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_ward(name: str, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH)
    agree(model, Ward(r=6), ward([6] * DEPTH, model.num_prefix_tokens), dtype)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_merging_and_dropping(name: str, first: bool, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH).to(dtype)
    merges, drops = [4, 3, 0, 2, 5, 1], [1, 0, 3, 4, 2, 0]
    method = MergeDrop(r=merges, drop=drops, drop_first=first)
    x = images(model, dtype=dtype)
    reference = Reference(model)
    reduce = mergedrop(reference, merges, drops, first, model.num_prefix_tokens)
    expected = reference.logits(x, reduce)
    slots = [spelled_out(reference, image, reduce) for image in x]
    with watch() as runs:
        logits = vitfold.fold(model, method)(x)
    assert runs[0].last.whole.slot.tolist() == slots
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_evit(name: str, fuse: bool, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH).to(dtype)
    x = images(model, dtype=dtype)
    reference = Reference(model, proportional=False)
    reduce = evit(reference, [0, 9, 0, 9, 0, 9], model.num_prefix_tokens, fuse)
    slots = [spelled_out(reference, image, reduce) for image in x]
    with watch() as runs:
        logits = vitfold.fold(model, EViT(r=9, blocks=(1, 3, 5), fuse=fuse))(x)
    assert runs[0].last.whole.slot.tolist() == slots
    expected = reference.logits(x, reduce)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_tome(name: str, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH)
    agree(model, ToMe(r=6), tome([6] * DEPTH, model.num_prefix_tokens), dtype)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_dfe(name: str, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH)
    agree(model, DFE(r=9), tome([0] + [9] * 5, model.num_prefix_tokens), dtype)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_lgtm(name: str, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH)
    reduce = lgtm([5] * DEPTH, model.num_prefix_tokens, (7, 7), skip=1)
    agree(model, LGTM(r=5), reduce, dtype)


@pytest.mark.parametrize("location", ["1d", "2d"])
@pytest.mark.parametrize("window", [None, 2, 5])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_lgtm_on_any_grid(grid: tuple[int, int], window: int | None, location: str) -> None:
    schedule = [4, 6, 3, 8, 5, 7]
    method = LGTM(r=schedule, skip=0, window=window, location=location)
    agree(vit(grid, DEPTH), method, lgtm(schedule, 1, grid, 0, window, location), batch=1)


def test_lgtm_on_the_usual_grid() -> None:
    model = vit((14, 14), depth=7)
    agree(model, LGTM(r=16, skip=1), lgtm([16] * 7, 1, (14, 14), skip=1))


def test_lgtm_with_images_of_another_size() -> None:
    model: Any = vit((8, 8), DEPTH, dynamic_img_size=True, pos_embed="none").double()
    x = torch.randn(1, 3, 24, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = Reference(model).logits(x, lgtm([4] * DEPTH, 1, (6, 10), skip=1))
    logits = vitfold.fold(model, LGTM(r=4))(x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_rotary_positions_on_any_grid(grid: tuple[int, int]) -> None:
    agree(eva(grid, 3, ref_feat_shape=None), ToMe(r=7), tome([7] * 3, 1), batch=1)


@pytest.mark.parametrize("options", [{"qkv_fused": True}, {"class_token": False}, {"depth": 3}])
def test_eva_in_other_layouts(options: dict[str, Any]) -> None:
    model: Any = eva(**({"depth": 4} | options))
    agree(model, ToMe(r=6), tome([6] * 4, model.num_prefix_tokens), batch=1)


@pytest.mark.parametrize("prefix", [0, 1, 2, 3, 6])
def test_any_number_of_prefix_tokens(prefix: int) -> None:
    options = {"class_token": prefix > 0, "reg_tokens": max(prefix - 1, 0), "global_pool": "avg"}
    agree(vit((6, 6), 4, **options), ToMe(r=7), tome([7] * 4, prefix), batch=1)
    agree(vit((6, 6), 4, **options), LGTM(r=7), lgtm([7] * 4, prefix, (6, 6), 0), batch=1)


def with_random_cues(reduce: Reduce, seed: int) -> Reduce:
    """The same, by a cue that no model computes."""

    def by_random(block: int, tokens: list[Any], cue: Tensor) -> list[Any]:
        return reduce(
            block, tokens, random(torch.arange(len(cue)).unsqueeze(0), seed + block)[0].to(cue)
        )

    return by_random


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("cue", CUES)
def test_every_cue_merges(cue: str, proportional: bool) -> None:
    plain, local = tome([6] * 4, 5), lgtm([6] * 4, 5, (7, 7), skip=0)
    if cue == "random":
        plain, local = with_random_cues(plain, 3), with_random_cues(local, 3)
    options: Any = {"cue": cue, "proportional": proportional, "seed": 3}
    agree(MODELS["dino"](), ToMe(r=6, **options), plain, batch=1)
    agree(MODELS["dino"](), LGTM(r=6, skip=0, **options), local, batch=1)


@pytest.mark.parametrize("name", ["dino", "eva"])
@pytest.mark.parametrize("cue", CUES)
def test_every_cue_drops(cue: str, name: str) -> None:
    model: Any = MODELS[name]()
    reduce = drop([6] * 4, model.num_prefix_tokens)
    if cue == "random":
        reduce = with_random_cues(reduce, 2)
    agree(model, Drop(r=6, cue=cue, seed=2), reduce)


@pytest.mark.parametrize(
    ("r", "schedule"),
    [
        (0, [0, 0, 0, 0, 0, 0]),
        (24, [24, 24, 24, 24, 24, 24]),
        ([3, 0, 9], [3, 0, 9, 0, 0, 0]),
        ([0, 0, 0, 0, 0, 20], [0, 0, 0, 0, 0, 20]),
        ((6, -1.0), ramp(6, -1.0, 6)),
        ((6, 1), ramp(6, 1, 6)),
        ((7, 0.5), ramp(7, 0.5, 6)),
    ],
    ids=str,
)
def test_every_form_of_r(r: Any, schedule: list[int]) -> None:
    agree(vit(depth=DEPTH), ToMe(r=r), tome(schedule, 1), batch=1)
    agree(vit(depth=DEPTH), LGTM(r=r, skip=0), lgtm(schedule, 1, (7, 7), 0), batch=1)
    agree(vit(depth=DEPTH), Drop(r=r), drop(schedule, 1), batch=1)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_both_ways_of_pooling(pool: str) -> None:
    for method, reduce in (
        (ToMe(r=8), tome([8] * 4, 1)),
        (Drop(r=8, cue="x_attn"), drop([8] * 4, 1)),
    ):
        agree(vit(global_pool=pool), method, reduce)


def test_models_are_alike_but_not_the_same() -> None:
    """Weights have a size at which merging is seen: an agreement on noise would mean nothing."""
    for build in MODELS.values():
        model: nn.Module = build().double()
        x = images(model)
        dense, folded = model(x), vitfold.fold(model, ToMe(r=8))(x)
        assert (dense - folded).abs().max() > 1e-3
        assert dense.std() > 0.1
