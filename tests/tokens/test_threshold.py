"""Thresholds that merge and drop, by laws: packed tokens and masked ones decide alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitfold.tokens.mark import Mark
from vitfold.tokens.masked import Masked
from vitfold.tokens.packed import Packed
from vitfold.tokens.start import start
from vitfold.tokens.tokenmap import PackedMap


def packed_state(lengths: list[int], prefix: int) -> Packed:
    state = start(torch.zeros(1, sum(lengths), 3), prefix, lengths=lengths)
    assert isinstance(state, Packed)
    return state


def masked_state(lengths: list[int], prefix: int) -> Masked:
    """The same tokens, those of every image at the front of a row."""
    here = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    x = torch.zeros(len(lengths), max(lengths), 3)
    state = start(x, prefix, valid=here, masks=True)
    assert isinstance(state, Masked)
    return state


@settings(deadline=None, max_examples=60)
@given(
    patches=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    prefix=st.integers(0, 3),
    level=st.floats(-1, 1),
    cut=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_what_leaves_obeys_the_laws(
    patches: list[int], prefix: int, level: float, cut: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = [prefix + n for n in patches]
    before, total = packed_state(lengths, prefix), sum(lengths)
    metric = torch.randn(1, total, 3, generator=generator).round()  # ties, and zero vectors
    scores = torch.rand(1, total, generator=generator)
    size = torch.rand(1, total, generator=generator) + 1
    merging = before.merge_above(metric, level)
    assert isinstance(merging, PackedMap)
    flat, owner = merging.flat, before.owners
    assert flat.fold_sizes(size).sum().item() == pytest.approx(size.sum().item())
    assert torch.equal(owner[flat.gone[0]], owner[flat.keep[0][flat.into[0]]])
    assert flat.keep[0].tolist() == sorted(flat.keep[0].tolist())
    assert bool((before.ranks()[0][flat.gone[0]] >= prefix).all())
    assert merging.lengths == tuple(torch.bincount(owner[flat.keep[0]]).tolist())
    between = before.apply(torch.zeros(1, total, 3), merging)[1]
    after = merging.fold_max(scores)
    pruning = between.drop_below(after, cut)
    assert isinstance(pruning, PackedMap)
    assert min(pruning.lengths) > prefix
    assert isinstance(between, Packed)
    kept = pruning.flat.keep[0]
    patch = between.ranks()[0]
    alone = torch.tensor(pruning.lengths)[between.owners[kept]] == prefix + 1
    assert bool(((after[0][kept] > cut) | (patch[kept] < prefix) | alone).all())


@settings(deadline=None, max_examples=60)
@given(
    patches=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    prefix=st.integers(0, 3),
    level=st.floats(-1, 1),
    cut=st.floats(0, 1),
    by_size=st.booleans(),
    prune_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masked_tokens_decide_as_packed_ones(
    patches: list[int],
    prefix: int,
    level: float,
    cut: float,
    by_size: bool,
    prune_first: bool,
    seed: int,
) -> None:
    """Two decisions in a row, of which the second knows the first."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [prefix + n for n in patches]
    packed, masked = packed_state(lengths, prefix), masked_state(lengths, prefix)
    metric = torch.randn(1, sum(lengths), 3, generator=generator, dtype=torch.float64)
    scores = torch.rand(1, sum(lengths), generator=generator, dtype=torch.float64)
    x = torch.randn(1, sum(lengths), 3, generator=generator, dtype=torch.float64)

    def beside(part: Tensor) -> Tensor:
        rows = torch.zeros(*masked.here.shape, *part.shape[2:], dtype=part.dtype)
        rows[masked.here] = part[0]
        return rows

    changes = []
    for state, cue, score in (
        (packed, metric, scores),
        (masked, beside(metric), beside(scores)),
    ):
        if prune_first:
            first = state.drop_below(score, cut)
            changes.append(state.merge_above(cue, level, by_size=by_size, after=first))
        else:
            first = state.merge_above(cue, level, by_size=by_size)
            changes.append(state.drop_below(score, cut, after=first))
    assert isinstance(changes[1], Mark)
    ours, after = packed.apply(x, changes[0])
    theirs, hidden = masked.apply(beside(x), changes[1])
    assert isinstance(hidden, Masked)
    assert after.counts == hidden.counts
    torch.testing.assert_close(ours[0], theirs[hidden.here])
    assert torch.equal(after.whole.slot, hidden.whole.slot)
    torch.testing.assert_close(after.sizes()[0], hidden.sizes()[hidden.here].to(after.dtype))
