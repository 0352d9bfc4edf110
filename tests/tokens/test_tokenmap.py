"""The laws of token maps, over maps of every kind, and the state that is kept with them."""

import itertools
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitfold.tokens.dense import Dense
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import DROPPED, Fate, TokenMap, take

LAWS = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Dice:
    """A seeded source of random tensors; prints as its seed when an example fails."""

    seed: int

    def rows(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def sizes(self, batch: int, tokens: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randint(1, 101, (batch, tokens), generator=generator).double()


DICE = st.builds(Dice, st.integers(0, 2**32))
COUNTS = st.one_of(st.integers(1, 12), st.integers(1, 1024))
FATES = st.sampled_from(get_args(Fate))


def random_map(tokens: int, gone: int, fate: Fate, dice: Dice, batch: int = 2) -> TokenMap:
    """Any `gone` tokens go into any of the others, or nowhere."""
    ranks = dice.rows(batch, tokens).argsort(dim=1)
    leavers, survivors = ranks[:, :gone], ranks[:, gone:]
    pick = (dice.sizes(batch, gone) * 997).long() % max(survivors.shape[1], 1)
    target = survivors.gather(1, pick)
    lost = dice.sizes(batch, gone) > {"merged": 100, "mixed": 50, "dropped": 0}[fate]
    target = target.masked_fill(lost, DROPPED)
    parent = torch.arange(tokens).repeat(batch, 1).scatter(1, leavers, target)
    order = dice.rows(tokens).argsort() if dice.seed % 2 else None
    return replace(TokenMap.from_parent(parent, order), fate=fate)


@st.composite
def maps(draw: st.DrawFn, tokens: st.SearchStrategy[int] = COUNTS) -> TokenMap:
    count = draw(tokens)
    return random_map(count, draw(st.integers(0, count - 1)), draw(FATES), draw(DICE))


@st.composite
def chains(draw: st.DrawFn, links: int) -> list[TokenMap]:
    """Maps that start where the one before ends."""
    chain = [draw(maps())]
    while len(chain) < links:
        chain.append(draw(maps(st.just(chain[-1].slots))))
    return chain


def matrix(step: TokenMap, size: Tensor) -> Tensor:
    """`[B, slots, N]`: the size of every token, in the row of its slot."""
    rows = torch.zeros(len(size), step.slots, step.tokens, dtype=size.dtype)
    for image, row in enumerate(step.slot.tolist()):
        for token, slot in enumerate(row):
            if slot != DROPPED:
                rows[image, slot, token] = size[image, token]
    return rows


def same(a: TokenMap, b: TokenMap) -> bool:
    return torch.equal(a.slot, b.slot) and torch.equal(a.keep, b.keep)


@LAWS
@given(maps(), DICE)
def test_folding_is_the_mean_of_every_slot_weighted_by_size(step: TokenMap, dice: Dice) -> None:
    x, size = dice.rows(2, step.tokens, 3), dice.sizes(2, step.tokens)
    weights = matrix(step, size)
    totals = weights.sum(dim=2)
    torch.testing.assert_close(step.fold_sizes(size), totals, rtol=0, atol=0)
    expected = weights @ x / totals.unsqueeze(-1)
    torch.testing.assert_close(step.fold(x, size), expected, rtol=1e-12, atol=1e-12)


@LAWS
@given(maps(), DICE)
def test_without_sizes_every_token_counts_once(step: TokenMap, dice: Dice) -> None:
    x = dice.rows(2, step.tokens, 3)
    ones = torch.ones(2, step.tokens, dtype=x.dtype)
    assert torch.equal(step.fold(x), step.fold(x, ones))


@LAWS
@given(chains(2), DICE)
def test_folding_twice_is_folding_by_then(chain: list[TokenMap], dice: Dice) -> None:
    first, second = chain
    x, size = dice.rows(2, first.tokens, 3), dice.sizes(2, first.tokens)
    both, sizes = first.then(second), first.fold_sizes(size)
    assert torch.equal(both.fold_sizes(size), second.fold_sizes(sizes))
    torch.testing.assert_close(
        both.fold(x, size), second.fold(first.fold(x, size), sizes), rtol=1e-11, atol=1e-11
    )


@LAWS
@given(chains(2), DICE)
def test_unfolding_twice_is_unfolding_by_then(chain: list[TokenMap], dice: Dice) -> None:
    first, second = chain
    y = dice.rows(2, second.slots, 3)
    assert torch.equal(first.then(second).unfold(y), first.unfold(second.unfold(y)))


@LAWS
@given(chains(3))
def test_then_may_be_bracketed_either_way(chain: list[TokenMap]) -> None:
    a, b, c = chain
    assert same(a.then(b).then(c), a.then(b.then(c)))


@LAWS
@given(chains(2))
def test_the_fate_of_a_chain_tells_what_may_have_happened(chain: list[TokenMap]) -> None:
    both = chain[0].then(chain[1])
    if both.fate == "merged":
        assert (both.into >= 0).all()
    if both.fate == "dropped":
        assert (both.into == DROPPED).all()


@LAWS
@given(chains(2), DICE)
def test_sizes_sum_to_all_but_what_was_dropped(chain: list[TokenMap], dice: Dice) -> None:
    for step in [*chain, chain[0].then(chain[1])]:
        size = dice.sizes(2, step.tokens)
        left = size.masked_fill(step.slot == DROPPED, 0)
        assert torch.equal(step.fold_sizes(size).sum(1), left.sum(1))


@LAWS
@given(maps(), DICE)
def test_folding_undoes_unfolding(step: TokenMap, dice: Dice) -> None:
    y, size = dice.rows(2, step.slots, 3), dice.sizes(2, step.tokens)
    torch.testing.assert_close(step.fold(step.unfold(y), size), y, rtol=1e-12, atol=1e-12)


@LAWS
@given(maps(), DICE)
def test_unfolding_shows_every_token_its_slot(step: TokenMap, dice: Dice) -> None:
    y, fill = dice.rows(2, step.slots, 3), dice.rows(2, 1, 3)
    for image, row in enumerate(step.slot.tolist()):
        rows = [fill[image, 0] if slot == DROPPED else y[image, slot] for slot in row]
        assert torch.equal(step.unfold(y, fill)[image], torch.stack(rows))


@LAWS
@given(COUNTS, DICE, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_identity_changes_nothing_bit_for_bit(tokens: int, dice: Dice, dtype: torch.dtype) -> None:
    identity = TokenMap.identity(2, tokens)
    x, size = dice.rows(2, tokens, 3).to(dtype), dice.sizes(2, tokens)
    x[0, 0, 0], x[1, -1, -1] = float("inf"), -0.0
    for same_again in (identity.fold(x), identity.fold(x, size), identity.unfold(x)):
        assert torch.equal(same_again, x)
        assert torch.equal(same_again.signbit(), x.signbit())
    assert torch.equal(identity.fold_sizes(size), size)


@LAWS
@given(maps())
def test_identity_before_or_after_makes_no_difference(step: TokenMap) -> None:
    before, after = (TokenMap.identity(2, n) for n in (step.tokens, step.slots))
    assert same(before.then(step), step)
    assert same(step.then(after), step)


@LAWS
@given(maps(), DICE)
def test_what_nothing_merges_into_stays_bit_for_bit(step: TokenMap, dice: Dice) -> None:
    x, size = dice.rows(2, step.tokens, 3), dice.sizes(2, step.tokens)
    alone = step.fold_sizes(torch.ones_like(size)) == 1
    kept = x.gather(1, step.keep.unsqueeze(-1).expand(-1, -1, 3))
    assert torch.equal(step.fold(x, size)[alone], kept[alone])


@LAWS
@given(maps(), DICE)
def test_permuting_the_batch_permutes_the_result(step: TokenMap, dice: Dice) -> None:
    x, size, swap = dice.rows(2, step.tokens, 3), dice.sizes(2, step.tokens), [1, 0]
    swapped = TokenMap(step.keep[swap], step.gone[swap], step.into[swap], step.fate)
    assert torch.equal(swapped.fold(x[swap], size[swap]), step.fold(x, size)[swap])
    y = step.fold(x, size)
    assert torch.equal(swapped.unfold(y[swap]), step.unfold(y)[swap])


@LAWS
@given(maps(), DICE)
def test_slots_in_another_order_hold_the_same(step: TokenMap, dice: Dice) -> None:
    weighted = replace(step, weight=dice.sizes(2, step.tokens))
    ordered, x = weighted.in_order(), dice.rows(2, step.tokens, 3)
    keep, order = step.keep.sort(dim=1)
    assert torch.equal(ordered.keep, keep)
    assert torch.equal(ordered.fold(x), take(weighted.fold(x), order))


@LAWS
@given(maps(), DICE, st.sampled_from([float("inf"), float("-inf"), float("nan")]))
def test_what_is_not_finite_stays_in_its_slot(step: TokenMap, dice: Dice, bad: float) -> None:
    clean = dice.rows(2, step.tokens, 3)
    dirty = clean.clone()
    dirty[0, dice.seed % step.tokens, 1] = bad
    slot = int(step.slot[0, dice.seed % step.tokens])
    out, expected = step.fold(dirty), step.fold(clean)
    if slot != DROPPED:
        torch.testing.assert_close(
            out[0, slot, 1], torch.tensor(bad, dtype=out.dtype), rtol=0, atol=0, equal_nan=True
        )
        expected[0, slot, 1] = out[0, slot, 1] = 0
    assert torch.equal(out, expected)


@LAWS
@given(maps())
def test_a_map_is_its_parents_again(step: TokenMap) -> None:
    slot = step.slot
    parent = step.keep.gather(1, slot.clamp(min=0)).where(slot >= 0, DROPPED)
    again = TokenMap.from_parent(parent)
    parent_again = again.keep.gather(1, again.slot.clamp(min=0)).where(again.slot >= 0, DROPPED)
    assert torch.equal(parent_again, parent)
    assert (again.keep.diff(dim=1) > 0).all()  # in the order in which they stand


def test_survivors_rank_in_the_order_that_is_declared() -> None:
    parent = torch.tensor([[0, 4, 2, DROPPED, 4, 5], [0, 1, 2, 0, 4, 2]])
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    step = TokenMap.from_parent(parent, order)
    assert step.keep.tolist() == [[0, 2, 4, 5], [0, 2, 4, 1]]
    assert step.slot.tolist() == [[0, 2, 1, DROPPED, 2, 3], [0, 3, 1, 0, 2, 1]]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_hundreds_of_tokens_are_counted_in_any_precision(dtype: torch.dtype, place: int) -> None:
    tokens = 600
    everything = torch.zeros(1, tokens, dtype=torch.long)
    step = replace(TokenMap.from_parent(everything), fate="merged")
    x = torch.zeros(1, tokens, 2, dtype=dtype)
    x[:, place] = 600
    assert step.fold(x).flatten().tolist() == pytest.approx([1, 1], rel=0.01)


def test_means_of_large_values_are_finite() -> None:
    step = replace(TokenMap.from_parent(torch.zeros(1, 4, dtype=torch.long)), fate="merged")
    x = torch.tensor([[[4e4], [-4e4], [2e4], [-4e4]]], dtype=torch.float16)
    assert step.fold(x).item() == pytest.approx(-5e3, rel=0.01)


@pytest.mark.parametrize("fate", get_args(Fate))
def test_gradients_flow_through_folding_and_unfolding(fate: Fate) -> None:
    dice = Dice(3)
    step = random_map(tokens=7, gone=3, fate=fate, dice=dice)
    x, size = dice.rows(2, 7, 2).requires_grad_(), dice.sizes(2, 7)
    y, fill = dice.rows(2, 4, 2).requires_grad_(), dice.rows(2, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: step.fold(x, size), x)
    assert torch.autograd.gradcheck(step.unfold, (y, fill))
    assert torch.autograd.gradcheck(lambda y: step.fold(step.unfold(y), size), y)


# The state.


def kept_state(chain: list[TokenMap], prefix: int = 1) -> TokenState:
    state = Dense(chain[0].tokens, prefix, batch=2)
    for step in chain:
        _, state = state.apply(torch.zeros(2, state.length, 1), step)
    return state


def prefixed_chain(fate: Fate, dice: Dice, counts: tuple[int, ...]) -> list[TokenMap]:
    """Maps from each count of patches to the next, after one prefix token that stays."""
    chain = []
    for before, after in itertools.pairwise(counts):
        step = random_map(before, before - after, fate, dice)
        parent = step.keep.gather(1, step.slot.clamp(min=0)).where(step.slot >= 0, DROPPED)
        moved = (parent + 1).where(parent >= 0, DROPPED)
        first = torch.zeros(2, 1, dtype=torch.long)
        whole = TokenMap.from_parent(torch.cat([first, moved], dim=1))
        chain.append(replace(whole, fate=fate))
    return chain


@LAWS
@given(FATES, DICE)
def test_books_hold_sizes_places_and_the_whole_way(fate: Fate, dice: Dice) -> None:
    chain = prefixed_chain(fate, dice, (24, 15, 8))
    state, whole = kept_state(chain), chain[0].then(chain[1])
    assert same(state.whole, whole)
    assert state.origin is not None
    assert torch.equal(state.origin, whole.keep)
    assert torch.equal(state.sizes(), whole.fold_sizes(torch.ones(2, 25)))
    assert state.length == 9


@LAWS
@given(FATES, DICE)
def test_dense_tokens_fold_back_to_those_of_now(fate: Fate, dice: Dice) -> None:
    state = kept_state(prefixed_chain(fate, dice, (24, 15, 8)))
    x = dice.rows(2, state.length, 3)
    dense = state.unfold(x)
    assert dense.shape == (2, 25, 3)
    assert torch.equal(state.fold(dense), x)


@LAWS
@given(FATES, DICE)
def test_the_mean_over_dense_patches_is_that_over_those_of_now(fate: Fate, dice: Dice) -> None:
    state = kept_state(prefixed_chain(fate, dice, (24, 15, 8)))
    x = dice.rows(2, state.length, 3)
    weight = state.sizes()[:, 1:, None]
    expected = (x[:, 1:] * weight).sum(1) / weight.sum(1)
    torch.testing.assert_close(state.unfold(x)[:, 1:].mean(1), expected)


def test_nothing_is_weighed_while_nothing_was_merged() -> None:
    like = torch.zeros(2, 7, 1, dtype=torch.bfloat16)
    state = Dense(tokens=7, prefix=1, batch=2)
    assert state.log_size(like) is None
    assert torch.equal(state.sizes(), torch.ones(2, 7))
    assert state.unfold(like) is like


def test_masks_and_positions_follow_the_tokens() -> None:
    state = kept_state(prefixed_chain("merged", Dice(5), (6, 4)))
    assert state.origin is not None
    mask, table = Dice(1).rows(3, 7, 7), Dice(2).rows(6, 4)
    bias = state.mask(mask, torch.float64)
    keys = state.mask(mask[:1, :1] > 0, torch.float64)
    rotary = state.positions(table)
    assert bias is not None
    assert keys is not None
    for image, origin in enumerate(state.origin.tolist()):
        assert torch.equal(bias[image], mask[:, origin][:, :, origin])
        assert torch.equal(keys[image, 0, 0] == 0, mask[0, 0, origin] > 0)
        assert torch.equal(rotary[image, 0], table[[i - 1 for i in origin[1:]]])
