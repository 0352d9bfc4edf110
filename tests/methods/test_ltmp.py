"""LTMP: a number of tokens of its own for every image, really removed and only masked."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.ltmp import (
    VARIANTS,
    create,
    each_model,
    each_variant,
    exactly,
    mixed_images,
    scattered,
)
from support.reference import Reference, ltmp
from support.small import MODELS, images, vit

import vitfold
from vitfold import LTMP, ToMe
from vitfold.data.digits import load_split
from vitfold.errors import MethodError, ShapeError
from vitfold.folding.blocks import within
from vitfold.folding.calls import fold_of, watch
from vitfold.saving.models import create_model
from vitfold.tokens.masked import Masked
from vitfold.tokens.tokenmap import DROPPED

# Against the methods in words.


def acts(method: LTMP, model: Any) -> list[tuple[str, list[float]]]:
    learned: Any = fold_of(model).learned
    return [(act, learned.of(act).detach().double().tolist()) for act in method.acts]


@each_model
@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_image_is_as_the_reference_has_it(
    name: str, method: LTMP, dtype: torch.dtype
) -> None:
    model = create(name, method, dtype)
    x = mixed_images(model, 3, dtype)
    reference = Reference(model, method.cue, method.proportional)
    reduce = ltmp(reference, acts(method, model), model.num_prefix_tokens)
    with watch() as runs:
        logits = model(x)
    left = [reference.run(image.double(), reduce) for image in x]
    slots = [
        {member: i for i, token in enumerate(tokens) for member in token.members} for tokens in left
    ]
    tokens = runs[0].states[0].tokens
    expected = [[slot.get(token, DROPPED) for token in range(tokens)] for slot in slots]
    assert runs[0].last.whole.slot.tolist() == expected
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    exactly(logits.double(), torch.stack([reference.read(tokens) for tokens in left]), atol)


def test_images_keep_numbers_of_their_own() -> None:
    """What all tests here rest on."""
    for name, method in VARIANTS.items():
        model = create("vit", method)
        counts = vitfold.trace(model, mixed_images(model)).counts
        assert len(set(counts[-1])) > 1, name
        assert max(counts[-1]) < 50


# Masked and packed.


@each_model
@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_masked_tokens_are_removed_tokens(name: str, method: LTMP, dtype: torch.dtype) -> None:
    model = create(name, method, dtype)
    x = mixed_images(model, dtype=dtype)
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    logits, features, trace = model(x), model.forward_features(x), vitfold.trace(model, x)
    with vitfold.masked():
        exactly(model(x), logits, atol)
        exactly(model.forward_features(x), features, atol)
        kept = vitfold.trace(model, x)
    assert kept.counts == trace.counts
    for ours, theirs in zip(kept.maps, trace.maps, strict=True):
        assert torch.equal(ours.slot, theirs.slot)


@each_model
@each_variant
def test_a_batch_gives_each_image_what_it_gets_alone(name: str, method: LTMP) -> None:
    model = create(name, method)
    x = mixed_images(model)
    together = model(x)
    exactly(together, torch.cat([model(image[None]) for image in x]))
    exactly(together.flip(0), model(x.flip(0)))


@pytest.mark.parametrize("sharper", [4, 8])
@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_gone_weighs_nothing(method: LTMP, sharper: float, dtype: torch.dtype) -> None:
    """Where its logits are far above those of what is left, too."""
    model = create("vit", method, dtype)
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * 48] *= sharper
    x = mixed_images(model, dtype=dtype)
    expected, counts = model(x), vitfold.trace(model, x).counts
    with vitfold.masked(), watch() as runs:
        exactly(model(x), expected, atol=1e-9 if dtype == torch.float64 else 1e-4)
        assert vitfold.trace(model, x).counts == counts
    state = runs[0].last
    assert isinstance(state, Masked)
    assert not state.count[~state.here].any()


@torch.no_grad()
def test_masked_digits_are_those_that_are_folded() -> None:
    model: Any = vitfold.fold(
        create_model("digits", pretrained=True), LTMP(merge_threshold=0.6, prune_threshold=0.004)
    )
    x = load_split("test")[0][:24]
    expected = model(x)
    with vitfold.masked():
        exactly(model(x), expected, atol=1e-4)


@each_model
def test_scores_are_the_same_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create(name, VARIANTS["prune"])
    x = mixed_images(model)
    expected = model(x)
    monkeypatch.setattr(within, "ELEMENTS", 1000)
    exactly(model(x), expected)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_image_harms_no_neighbour_where_images_are_padded(
    broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create("vit", VARIANTS["both"])
    x = mixed_images(model, 3)
    expected = model(x)
    monkeypatch.setattr(within, "at_once", lambda q: True)
    x[broken] = float("nan")
    others = [image for image in range(3) if image != broken]
    exactly(model(x)[others], expected[others])


def test_an_image_without_a_batch_is_refused() -> None:
    model = create("vit", VARIANTS["both"])
    with pytest.raises(ShapeError, match=r"without a batch: give images\[None\]"):
        model(mixed_images(model)[0])


@each_model
@each_variant
@torch.no_grad()
def test_padded_images_attend_as_single_ones(
    name: str, method: LTMP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for all images, as on a GPU, and one for each, as on a CPU."""
    model = create(name, method)
    x = mixed_images(model)
    expected = model(x)
    monkeypatch.setattr(within, "MOST_ELEMENTS", 3 * 50**2)
    monkeypatch.setattr(within, "at_once", lambda q: True)
    exactly(model(x), expected)


@each_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_thresholds_that_let_all_pass_change_no_bit(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype)
    x = images(model, dtype=dtype)
    logits, features = model(x), model.forward_features(x)
    vitfold.fold(model, LTMP(merge_threshold=1.0, prune_threshold=0.0))
    assert torch.equal(model(x), logits)
    assert torch.equal(model.forward_features(x), features)


# On and off.


def test_unfolding_leaves_no_trace() -> None:
    model = vit()
    x = images(model, dtype=torch.float32)
    before, keys = model(x), list(model.state_dict())
    vitfold.fold(model, "ltmp")
    added = ["vitfold.merge", "vitfold.prune"]
    assert [key for key in model.state_dict() if key not in keys] == added
    vitfold.fold(model, LTMP(prune=False))
    assert [key for key in model.state_dict() if key not in keys] == added[:1]
    vitfold.fold(model, ToMe(r=0))
    assert list(model.state_dict()) == keys
    vitfold.unfold(vitfold.fold(model, "ltmp"))
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)


def test_a_failed_fold_keeps_what_was_learned() -> None:
    model = create("vit", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    before = model(x)
    with pytest.raises(MethodError):
        vitfold.fold(model, ToMe(r=[1] * 9))
    assert torch.equal(model(x), before)


def test_copies_have_thresholds_of_their_own() -> None:
    model = create("vit", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    before = model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for values in model.vitfold.parameters():
        values.data.zero_()
    for other in copies:
        assert fold_of(other).learned is other.vitfold
        assert torch.equal(other(x), before)


def test_two_threads_may_run_one_model() -> None:
    model = create("dino", VARIANTS["both"])
    batches = [images(model, batch, seed=batch) for batch in (1, 2, 3, 4)]
    expected = [model(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for ours, alone in zip(pool.map(model, batches), expected, strict=True):
            exactly(ours, alone)


# Edges.


@each_model
@pytest.mark.parametrize("order", ["merge_first", "prune_first"])
def test_prefix_and_one_patch_stay(name: str, order: str) -> None:
    method = LTMP(order=order, merge_threshold=0.0, prune_threshold=1.0)
    model = vitfold.fold(MODELS[name]().double(), method)
    x = images(model, 3)
    logits, trace = model(x), vitfold.trace(model, x)
    assert trace.counts == [[model.num_prefix_tokens + 1] * 3] * 4
    assert logits.isfinite().all()
    with vitfold.masked():
        exactly(model(x), logits)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("name", ["vit", "dino"])  # timm's Eva takes no empty one
def test_small_batches(name: str, batch: int) -> None:
    model = create(name, VARIANTS["both"])
    x = images(model, 2)[:batch]
    assert model(x).shape == (batch, 7)
    assert model.forward_features(x).shape[0] == batch
    assert len(vitfold.trace(model, x).counts[0]) == batch


@pytest.mark.parametrize("value", [0.0, 1.0, float("inf"), float("nan")])
def test_flat_and_broken_images_harm_no_neighbour(value: float) -> None:
    model = create("vit", VARIANTS["both"])
    x = images(model, 3)
    expected = model(x)
    x[1] = value
    exactly(model(x)[[0, 2]], expected[[0, 2]])
    dense = vitfold.unfold(copy.deepcopy(model))(x)[1]
    assert model(x)[1].isfinite().all() or not dense.isfinite().all()


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (1, 3), (3, 5)])
def test_tiny_grids(grid: tuple[int, int]) -> None:
    model = scattered(vitfold.fold(vit(grid).double(), VARIANTS["both"]))
    x = images(model, 2)
    logits = model(x)
    with vitfold.masked():
        exactly(model(x), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": False, "prune": False}, "switch one on"),
        ({"order": "both"}, "merge_first or prune_first"),
        ({"merge_threshold": 1.5}, "merge_threshold=1.5: expected a number from 0 to 1"),
        ({"prune_threshold": -1}, "prune_threshold=-1"),
        ({"temperature": 0}, "temperature=0"),
        ({"merge": 1}, "merge=1: expected True or False"),
        ({"flops": 0}, "flops=0"),
        ({"cue": "keys"}, "unknown cue 'keys'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        LTMP(**options)


def test_it_takes_no_r() -> None:
    with pytest.raises(MethodError, match="LTMP has no option 'r'"):
        vitfold.fold(vit(), "ltmp", r=4)


# Around it.


@each_model
@each_variant
def test_dense_outputs_keep_their_shapes(name: str, method: LTMP) -> None:
    model = create(name, method)
    x = mixed_images(model)
    dense = vitfold.unfold(copy.deepcopy(model))
    assert model.forward_features(x).shape == dense.forward_features(x).shape
    last, between = model.forward_intermediates(x, indices=3)
    assert [part.shape for part in between] == [part.shape for part in dense.forward_intermediates(
        x, indices=3, intermediates_only=True)]  # fmt: skip
    assert last.shape == model.forward_features(x).shape
    if method == VARIANTS["merge"]:  # means of survivors are taken after the norm there
        exactly(last, model.forward_features(x))
    if hasattr(model, "get_intermediate_layers"):
        assert model.get_intermediate_layers(x, n=2)[0].shape[0] == len(x)


def test_features_show_what_pooling_pools() -> None:
    model = create("eva", VARIANTS["merge"])
    x = mixed_images(model)
    exactly(model.forward_head(model.forward_features(x)), model(x))


def test_pictures_and_counts() -> None:
    model = create("vit", VARIANTS["both"])
    x = mixed_images(model).float().double()
    trace = vitfold.trace(model, x)
    for image, last in enumerate(trace.counts[-1]):
        groups = trace.groups(image)
        slots = trace.maps[-1].slot[image]
        assert len(slots[slots >= 0].unique()) == last
        assert groups.shape == (7, 7)
        assert trace.draw(image).width == trace.draw(image).height
    assert trace.strip(0).width > trace.draw(0).width


def test_maps_fold_and_unfold() -> None:
    model = create("vit", VARIANTS["both"])
    x = mixed_images(model)
    whole = vitfold.trace(model, x).maps[-1]
    tokens = torch.randn(4, whole.tokens, 5)
    rows = whole.fold(tokens)
    assert rows.shape == (4, whole.slots, 5)
    exactly(whole.fold(whole.unfold(rows)), rows, 1e-5)
    sizes = whole.fold_sizes(torch.ones(4, whole.tokens))
    assert torch.equal(sizes.sum(1), (whole.slot >= 0).sum(1).float())


def test_flops_are_those_of_the_images_at_hand() -> None:
    model = create("vit", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    one_by_one = [vitfold.flops(model, image[None]) for image in x]
    assert len(set(one_by_one)) > 1
    assert vitfold.flops(model, x) == pytest.approx(sum(one_by_one), rel=0.02)
    assert vitfold.flops(model, x) < vitfold.flops(vitfold.unfold(model), x)
    assert vitfold.throughput(vitfold.fold(model, VARIANTS["both"]), x, repeats=1).median > 0


def test_sizes_of_images_in_one_call_are_one() -> None:
    model = create("vit", VARIANTS["both"], torch.float32, dynamic_img_size=True)
    assert model(torch.randn(2, 3, 32, 20)).shape == (2, 7)
    with pytest.raises(ShapeError, match="one tensor"):
        model([torch.randn(3, 28, 28), torch.randn(3, 32, 32)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_finite(dtype: torch.dtype) -> None:
    model = create("dino", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(x)
        with vitfold.masked():
            other = model(x)
    assert logits.isfinite().all()
    assert (logits - other).abs().max() < 0.5
