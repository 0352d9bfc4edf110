"""LTMP: a number of tokens of its own for every image, really removed and only masked."""

import copy
import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.reference import Reference, ltmp
from support.small import MODELS, images, vit
from torch import Tensor, nn
from torch.nn.attention import varlen

import vitfold
from vitfold import LTMP, ToMe
from vitfold.data.digits import create_digits, load_split
from vitfold.errors import DataError, MethodError, PlanError, ShapeError
from vitfold.folding.blocks import within
from vitfold.folding.blocks.packed import PackedAttend
from vitfold.folding.calls import fold_of, watch
from vitfold.tokens import ragged, threshold
from vitfold.tokens.masked import Masked
from vitfold.tokens.packed import Packed
from vitfold.tokens.tokenmap import DROPPED
from vitfold.train.reach import reach

MERGE, PRUNE = 0.35, 0.016

VARIANTS: dict[str, LTMP] = {
    "both": LTMP(merge_threshold=MERGE, prune_threshold=PRUNE),
    "merge": LTMP(prune=False, merge_threshold=0.6),
    "prune": LTMP(merge=False, prune_threshold=PRUNE),
    "prune first": LTMP(order="prune_first", merge_threshold=MERGE, prune_threshold=PRUNE),
    "other cue": LTMP(cue="x", merge_threshold=0.75, prune_threshold=PRUNE, proportional=False),
}

each_model = pytest.mark.parametrize("name", MODELS)
each_variant = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)


def exactly(a: Tensor, b: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """Thresholds of their own for every block, around those that they start from."""
    generator = torch.Generator().manual_seed(seed)
    learned = fold_of(model).learned
    assert learned is not None
    for values in learned.parameters():
        noise = torch.rand(values.shape, generator=generator, dtype=torch.float64) - 0.5
        values.data.copy_(values.double() * (1 + 0.2 * noise))
    # The first block looks at scores in vain, the second does not look at them.
    for act, first, second in (("merge", 1.0, None), ("prune", 1e-12, 0.0)):
        if (levels := getattr(learned, act)) is not None and len(levels) > 2:
            levels.data[0] = first
            levels.data[1] = levels[1] if second is None else second
    return model


def made(name: str, method: LTMP, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return scattered(vitfold.fold(MODELS[name](**options).to(dtype), method))


def mixed_images(model: Any, batch: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of several contrasts, so that counts differ."""
    x = images(model, batch, dtype=dtype)
    return x * torch.linspace(0.2, 1.5, batch, dtype=dtype)[:, None, None, None]


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
    model = made(name, method, dtype)
    x = mixed_images(model, 3, dtype)
    reference = Reference(model, method.cue, method.proportional)
    reduce = ltmp(reference, acts(method, model), model.num_prefix_tokens)
    with watch() as runs:
        logits = model(x)
    left = [reference.run(image.double(), reduce) for image in x]
    slots = [
        {member: i for i, token in enumerate(tokens) for member in token.members} for tokens in left
    ]
    tokens = runs[0].books[0].tokens
    expected = [[slot.get(token, DROPPED) for token in range(tokens)] for slot in slots]
    assert runs[0].last.whole(x).slot.tolist() == expected
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    exactly(logits.double(), torch.stack([reference.read(tokens) for tokens in left]), atol)


def test_images_keep_numbers_of_their_own() -> None:
    """What all tests here rest on."""
    for name, method in VARIANTS.items():
        model = made("vit", method)
        counts = vitfold.trace(model, mixed_images(model)).counts
        assert len(set(counts[-1])) > 1, name
        assert max(counts[-1]) < 50


# Masked and packed.


@each_model
@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_masked_tokens_are_removed_tokens(name: str, method: LTMP, dtype: torch.dtype) -> None:
    model = made(name, method, dtype)
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
    model = made(name, method)
    x = mixed_images(model)
    together = model(x)
    exactly(together, torch.cat([model(image[None]) for image in x]))
    exactly(together.flip(0), model(x.flip(0)))


@pytest.mark.parametrize("sharper", [4, 8])
@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_gone_weighs_nothing(method: LTMP, sharper: float, dtype: torch.dtype) -> None:
    """Where its logits are far above those of what is left, too."""
    model = made("vit", method, dtype)
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * 48] *= sharper
    x = mixed_images(model, dtype=dtype)
    expected, counts = model(x), vitfold.trace(model, x).counts
    with vitfold.masked(), watch() as runs:
        exactly(model(x), expected, atol=1e-9 if dtype == torch.float64 else 1e-4)
        assert vitfold.trace(model, x).counts == counts
    books = runs[0].last
    assert isinstance(books, Masked)
    assert not books.presence[~books.here].any()


@torch.no_grad()
def test_masked_digits_are_those_that_are_folded() -> None:
    model: Any = vitfold.fold(create_digits(), LTMP(merge_threshold=0.6, prune_threshold=0.004))
    x = load_split("test")[0][:24]
    expected = model(x)
    with vitfold.masked():
        exactly(model(x), expected, atol=1e-4)


@each_model
def test_scores_are_the_same_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(name, VARIANTS["prune"])
    x = mixed_images(model)
    expected = model(x)
    monkeypatch.setattr(within, "ELEMENTS", 1000)
    exactly(model(x), expected)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_image_harms_no_neighbour_where_images_are_padded(
    broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("vit", VARIANTS["both"])
    x = mixed_images(model, 3)
    expected = model(x)
    monkeypatch.setattr(PackedAttend, "way", "padded")
    x[broken] = float("nan")
    others = [image for image in range(3) if image != broken]
    exactly(model(x)[others], expected[others])


def test_an_image_without_a_batch_is_refused() -> None:
    model = made("vit", VARIANTS["both"])
    with pytest.raises(ShapeError, match=r"without a batch: give images\[None\]"):
        model(mixed_images(model)[0])


@each_model
@each_variant
@pytest.mark.parametrize("way", ["padded", "flexible"])
@torch.no_grad()
def test_ways_to_attend_within_images_agree(
    name: str, method: LTMP, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name, method)
    x = mixed_images(model)
    expected = model(x)
    monkeypatch.setattr(within, "MOST_ELEMENTS", 3 * 50**2)
    monkeypatch.setattr(within, "BLOCK", 16)
    monkeypatch.setattr(PackedAttend, "way", way)
    exactly(model(x), expected)


def flash(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, _: Tensor, longest: int, __: int, scale: float
) -> Tensor:
    """Flash attention in words: what it demands, and what it gives."""
    assert q.shape == k.shape == v.shape
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.is_contiguous()
    assert q.shape[-1] % 8 == 0
    assert int(starts.diff().max()) == longest
    parts = [
        nn.functional.scaled_dot_product_attention(
            *(part[low:high].transpose(0, 1).double() for part in (q, k, v)), scale=scale
        )
        for low, high in itertools.pairwise(starts.tolist())
    ]
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("width", [16, 20, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sizes_as_channels_are_as_exact_as_a_bias(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", flash)
    lengths, generator = (5, 31, 1, 12), torch.Generator().manual_seed(width)
    total = sum(lengths)
    q, k, v = torch.randn(3, 1, 3, total, width, generator=generator).to(dtype)
    size = torch.randint(1, 200, (1, total), generator=generator).float()
    books = Packed(40, 1, size=size, origin=torch.arange(total)[None], lengths=lengths)
    for sizes in (None, books.log_size(q)):
        images = within.Images(q.device, books, sizes, None, None)
        exact = replace(images, sizes=None if sizes is None else size.double().log()[None, None])
        expected = within.one_by_one(q.double(), k.double(), v.double(), exact)
        exactly(within.varied(q, k, v, images), expected, atol=1e-4)


@pytest.mark.parametrize("lengths", [(100, 56, 3, 200, 1, 24, 512, 128), (1,), (128, 128), (300,)])
def test_blocks_of_keys_are_those_of_their_images(lengths: tuple[int, ...]) -> None:
    books = Packed(600, 1, lengths=lengths)
    images = within.Images(torch.device("cpu"), books, None, None, None)
    numbers, blocks = (found[0, 0].tolist() for found in within._blocks(images))
    owners = images.owners.tolist()
    parts = [owners[at : at + within.BLOCK] for at in range(0, len(owners), within.BLOCK)]
    for queries, number, listed in zip(parts, numbers, blocks, strict=True):
        expected = [at for at, keys in enumerate(parts) if set(keys) & set(queries)]
        assert listed[:number] == expected


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
    model = made("vit", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    before = model(x)
    with pytest.raises(MethodError):
        vitfold.fold(model, ToMe(r=[1] * 9))
    assert torch.equal(model(x), before)


def test_copies_have_thresholds_of_their_own() -> None:
    model = made("vit", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    before = model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for values in model.vitfold.parameters():
        values.data.zero_()
    for other in copies:
        assert fold_of(other).learned is other.vitfold
        assert torch.equal(other(x), before)


def test_two_threads_may_run_one_model() -> None:
    model = made("dino", VARIANTS["both"])
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
    model = made(name, VARIANTS["both"])
    x = images(model, 2)[:batch]
    assert model(x).shape == (batch, 7)
    assert model.forward_features(x).shape[0] == batch
    assert len(vitfold.trace(model, x).counts[0]) == batch


@pytest.mark.parametrize("value", [0.0, 1.0, float("inf"), float("nan")])
def test_flat_and_broken_images_harm_no_neighbour(value: float) -> None:
    model = made("vit", VARIANTS["both"])
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


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    prefix=st.integers(0, 3),
    level=st.floats(-1, 1),
    cut=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_what_leaves_obeys_the_laws(
    lengths: list[int], prefix: int, level: float, cut: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([prefix + n for n in lengths])
    total = int(numbers.sum())
    metric = torch.randn(1, total, 3, generator=generator).round()  # ties, and zero vectors
    scores = torch.rand(1, total, generator=generator)
    size = torch.rand(1, total, generator=generator) + 1
    merging = threshold.merge(metric, numbers, prefix, level)
    left = ragged.left(numbers, merging.keep[0])
    owner = ragged.owners(numbers, total)
    assert merging.fold_sizes(size).sum().item() == pytest.approx(size.sum().item())
    assert torch.equal(owner[merging.gone[0]], owner[merging.keep[0][merging.into[0]]])
    assert merging.keep[0].tolist() == sorted(merging.keep[0].tolist())
    place = torch.arange(total) - ragged.starts(numbers)[owner]
    assert bool((place[merging.gone[0]] >= prefix).all())
    after = threshold.fold_scores(scores, merging)
    pruning = threshold.prune(after, left, prefix, cut)
    stays = ragged.left(left, pruning.keep[0])
    assert bool((stays > prefix).all())
    kept = pruning.keep[0]
    patch = torch.arange(merging.slots) - ragged.starts(left)[ragged.owners(left, merging.slots)]
    alone = stays[ragged.owners(left, merging.slots)[kept]] == prefix + 1
    assert bool(((after[0][kept] > cut) | (patch[kept] < prefix) | alone).all())


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
    model = made(name, method)
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
    model = made("eva", VARIANTS["merge"])
    x = mixed_images(model)
    exactly(model.forward_head(model.forward_features(x)), model(x))


def test_pictures_and_counts() -> None:
    model = made("vit", VARIANTS["both"])
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
    model = made("vit", VARIANTS["both"])
    x = mixed_images(model)
    whole = vitfold.trace(model, x).maps[-1]
    tokens = torch.randn(4, whole.tokens, 5)
    rows = whole.fold(tokens)
    assert rows.shape == (4, whole.slots, 5)
    exactly(whole.fold(whole.unfold(rows)), rows, 1e-5)
    sizes = whole.fold_sizes(torch.ones(4, whole.tokens))
    assert torch.equal(sizes.sum(1), (whole.slot >= 0).sum(1).float())


def test_flops_are_those_of_the_images_at_hand() -> None:
    model = made("vit", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    one_by_one = [vitfold.flops(model, image[None]) for image in x]
    assert len(set(one_by_one)) > 1
    assert vitfold.flops(model, x) == pytest.approx(sum(one_by_one), rel=0.02)
    assert vitfold.flops(model, x) < vitfold.flops(vitfold.unfold(model), x)
    assert vitfold.throughput(vitfold.fold(model, VARIANTS["both"]), x, repeats=1).median > 0


def test_sizes_of_images_in_one_call_are_one() -> None:
    model = made("vit", VARIANTS["both"], torch.float32, dynamic_img_size=True)
    assert model(torch.randn(2, 3, 32, 20)).shape == (2, 7)
    with pytest.raises(ShapeError, match="one tensor"):
        model([torch.randn(3, 28, 28), torch.randn(3, 32, 32)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_finite(dtype: torch.dtype) -> None:
    model = made("dino", VARIANTS["both"], torch.float32)
    x = mixed_images(model, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(x)
        with vitfold.masked():
            other = model(x)
    assert logits.isfinite().all()
    assert (logits - other).abs().max() < 0.5


# Gradients.


def test_gradients_reach_images_through_packed_tokens() -> None:
    model = made("vit", VARIANTS["both"], depth=2)
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
        model = made("vit", VARIANTS["both"]).train(mode)
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
        seen = (p.mean(1) * alive[:, :, None]).sum(1) / alive.sum(1, keepdim=True)
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
        seen = seen.scatter_reduce(1, into, seen, "amax")
        stays = straight(seen, pruning)
        mask = mask * (1 - goes) * torch.where(patch & ~merged, stays, torch.ones_like(stays))
        masks.append(mask)
        t = t + block.mlp(block.norm2(t))
    return model.head(model.norm(t)[:, 0]), masks


def test_thresholds_get_the_gradients_of_the_paper() -> None:
    method = LTMP(flops=0.6, merge_threshold=MERGE, prune_threshold=PRUNE)
    model = made("vit", method).train()
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
    told = torch.nn.functional.cross_entropy(expected, labels, label_smoothing=0.1)
    exactly(penalty, 10 * (share - 0.6) ** 2)
    theirs = torch.autograd.grad(told + 10 * (share - 0.6) ** 2, [merge, prune])
    for a, b in zip(ours, theirs, strict=True):
        assert a.abs().max() > 0
        exactly(a, b, 1e-8)


# Saved and loaded.


@each_variant
@pytest.mark.parametrize("backbone", [False, True])
def test_thresholds_come_back(method: LTMP, backbone: bool, tmp_path: Path) -> None:
    model = made("vit", method, torch.float32)
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
    vitfold.save(made("vit", VARIANTS["both"], torch.float32), tmp_path)
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
    model = made(name, method)
    x = mixed_images(model)
    means = [sum(counts) / len(x) for counts in vitfold.trace(model, x).counts]
    again = vitfold.freeze(model, [x[:2], x[2:]])
    assert again is model
    assert not hasattr(model, "vitfold")
    for counts, mean in zip(vitfold.trace(model, x).counts, means, strict=True):
        assert set(counts) == {counts[0]}
        assert counts[0] == pytest.approx(mean, abs=1.01)


def test_frozen_numbers_come_from_batches_of_any_form() -> None:
    x = mixed_images(made("vit", VARIANTS["both"]))
    given: list[Any] = [x, {"x": x}, [{"x": x[:1]}, {"x": x[1:]}], [(x, torch.zeros(len(x)))]]
    found = [vitfold.freeze(made("vit", VARIANTS["both"]), images) for images in given]
    assert len({str(fold_of(model).method) for model in found}) == 1


def test_nothing_is_taken_from_images_that_are_no_numbers() -> None:
    model = made("vit", VARIANTS["both"])
    x = mixed_images(model)
    with pytest.raises(DataError, match="batch 1 holds values that are no numbers"):
        vitfold.freeze(model, [x, x * torch.nan])
    assert fold_of(model).method == VARIANTS["both"]


def test_frozen_numbers_do_not_depend_on_how_it_is_evaluated() -> None:
    models = [made("vit", VARIANTS["both"]) for _ in range(2)]
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
    assert reach(model, 0.8, [x])[0] == pytest.approx(0.8, abs=0.02)
    learned: Any = fold_of(model).learned
    assert float(learned.merge.detach()[0]) < 1 - 8 * 0.02  # by more than eight, here


def test_what_is_alike_already_is_not_frozen() -> None:
    model = vitfold.fold(vit(), ToMe(r=3))
    with pytest.raises(MethodError, match="fixed numbers already"):
        vitfold.freeze(model, images(model))
    with pytest.raises(DataError, match="no images"):
        vitfold.freeze(vitfold.fold(vit(), "ltmp"), [])
