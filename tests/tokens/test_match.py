"""Matching against plain loops: ties, duplicates, zeros, infinities, windows and padding.

Cues have entries of one magnitude and a power of two for a length, so that their similarities are
exact: equal is equal, and ties are ties.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.reference import Reduce, Token, drop, lgtm, merge_globally, tome, unit
from torch import Tensor
from torch._subclasses import FakeTensorMode

from vitfold import DFE, LGTM, Drop, Method, ToMe
from vitfold.methods.lgtm import LOCATIONS
from vitfold.tokens import cues, match
from vitfold.tokens.dense import Dense
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import DROPPED, TokenMap

LAWS = settings(max_examples=60, deadline=None)

CHANNELS = 4

Groups = list[tuple[int, tuple[int, ...]]]
"""For every slot the token that gives it its place, and all that it stands for."""


def exact_cue(seed: int, batch: int, tokens: int, strange: bool = False) -> Tensor:
    """Rows of plus and minus one, many of them equal; strange ones hold zeros and infinities."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (batch, tokens, CHANNELS), generator=generator)
    cue = (signs * 2 - 1).double()
    if strange:
        kind = torch.randint(0, 8, (batch, tokens), generator=generator)
        cue[kind == 0] = 0
        cue[kind == 1] *= float("inf")
        cue[kind == 2] = cue[0, 0].clone()
    return cue


def groups(step: TokenMap, image: int) -> Groups:
    slots = step.slot[image].tolist()
    members: list[list[int]] = [[] for _ in range(step.slots)]
    for token, slot in enumerate(slots):
        if slot != DROPPED:
            members[slot].append(token)
    return [
        (place, tuple(group))
        for place, group in zip(step.keep[image].tolist(), members, strict=True)
    ]


def spelled_out(tokens: Sequence[Token]) -> Groups:
    return [(token.place, tuple(sorted(token.members))) for token in tokens]


def fresh(tokens: int) -> list[Token]:
    return [Token(torch.zeros(1), (i,), i) for i in range(tokens)]


def after(state: TokenState, step: TokenMap, like: Tensor) -> TokenState:
    return state.apply(like, step)[1]


@st.composite
def shapes(draw: st.DrawFn, most: int = 1024) -> tuple[int, int, int]:
    """Tokens, prefix and r."""
    prefix = draw(st.sampled_from([0, 1, 2, 5]))
    patches = draw(st.one_of(st.integers(2, 20), st.integers(2, most - prefix)))
    return prefix + patches, prefix, draw(st.integers(1, patches // 2))


SEEDS = st.integers(0, 2**32)


@LAWS
@given(shapes(), SEEDS, st.booleans())
def test_bipartite_merges_what_loops_merge(
    shape: tuple[int, int, int], seed: int, strange: bool
) -> None:
    tokens, prefix, r = shape
    cue = exact_cue(seed, 2, tokens, strange)
    step = match.bipartite(cue, r, prefix)
    for image in range(2):
        expected = merge_globally(fresh(tokens), cue[image], prefix, r)
        assert groups(step, image) == spelled_out(expected)


@LAWS
@given(shapes(), SEEDS)
def test_bipartite_keeps_its_laws(shape: tuple[int, int, int], seed: int) -> None:
    tokens, prefix, r = shape
    step = match.bipartite(exact_cue(seed, 2, tokens, strange=True), r, prefix)
    assert (step.tokens, step.slots) == (tokens, tokens - r)
    assert step.keep[:, :prefix].tolist() == [list(range(prefix))] * 2
    assert (step.into >= prefix).all()
    assert (step.gone % 2 == 0).all()
    assert (step.keep.gather(1, step.into) % 2 == 1).all()
    assert step.fold_sizes(torch.ones(2, tokens)).sum(1).tolist() == [tokens, tokens]


@LAWS
@given(shapes(), SEEDS)
def test_permuting_the_batch_permutes_the_match(shape: tuple[int, int, int], seed: int) -> None:
    tokens, prefix, r = shape
    cue = exact_cue(seed, 3, tokens, strange=True)
    shuffled = match.bipartite(cue[[2, 0, 1]], r, prefix)
    assert torch.equal(shuffled.slot, match.bipartite(cue, r, prefix).slot[[2, 0, 1]])


@LAWS
@given(shapes(), SEEDS)
def test_a_match_is_the_map_of_its_parents(shape: tuple[int, int, int], seed: int) -> None:
    tokens, prefix, r = shape
    cue = exact_cue(seed, 2, tokens)
    places = range(prefix, tokens)
    ranks = [*range(prefix), *(i for i in places if i % 2 == 0), *(i for i in places if i % 2)]
    for step, order in (
        (match.bipartite(cue, r, prefix), torch.tensor(ranks)),
        (match.lowest(cue.norm(dim=-1), r, prefix), None),
    ):
        parent = step.keep.gather(1, step.slot.clamp(min=0)).where(step.slot >= 0, DROPPED)
        again = TokenMap.from_parent(parent, order)
        assert torch.equal(again.slot, step.slot)
        assert torch.equal(again.keep, step.keep)


def test_equal_tokens_merge_earliest_first_into_the_earliest() -> None:
    step = match.bipartite(torch.ones(1, 9, 4), r=2, prefix=1)
    assert groups(step, 0) == [
        (0, (0,)), (6, (6,)), (8, (8,)), (1, (1, 2, 4)), (3, (3,)), (5, (5,)), (7, (7,))
    ]  # fmt: skip


@LAWS
@given(shapes(), SEEDS)
def test_lowest_drops_what_loops_drop(shape: tuple[int, int, int], seed: int) -> None:
    tokens, prefix, r = shape
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(0, 6, (2, tokens, 1), generator=generator)
    cue = exact_cue(seed, 2, tokens) * length
    cue[0, -1] = float("inf")
    step = match.lowest(cue.norm(dim=-1), r, prefix)
    for image in range(2):
        expected = drop([r], prefix)(0, fresh(tokens), cue[image])
        assert groups(step, image) == spelled_out(expected)


@LAWS
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_unit_rows_are_finite_whatever_comes(seed: int, tokens: int) -> None:
    odd = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-300, 1e300, 1.0, -2.0]
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(0, len(odd), (1, tokens, 3), generator=generator)
    cue = torch.tensor(odd, dtype=torch.float64)[pick]
    rows = match.unit(cue)
    assert rows.isfinite().all()
    plain = ((cue == 0) | ((cue.abs() > 1e-9) & (cue.abs() < 1e9))).all(-1)
    torch.testing.assert_close(rows[plain], unit(cue[plain]) if plain.any() else rows[plain])


# Padding.


@LAWS
@given(shapes(most=80), st.lists(st.floats(0, 1), min_size=3, max_size=3), SEEDS, st.booleans())
def test_padded_images_lose_what_they_lose_alone(
    shape: tuple[int, int, int], shares: list[float], seed: int, merging: bool
) -> None:
    tokens, prefix, r = shape
    cue = exact_cue(seed, 3, tokens)
    lengths = [prefix + 1 + int(share * (tokens - prefix - 1)) for share in shares]
    valid = torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)
    if merging:
        step = match.bipartite(cue, r, prefix, valid)
    else:
        step = match.lowest(cue.norm(dim=-1), r, prefix, valid)
    assert (step.tokens, step.slots) == (tokens, tokens - r)
    for image, length in enumerate(lengths):
        reduce = tome([r], prefix) if merging else drop([r], prefix)
        alone = spelled_out(reduce(0, fresh(length), cue[image, :length]))
        padded = groups(step, image)
        assert padded[: len(alone)] == alone
        assert all(place >= length and group == (place,) for place, group in padded[len(alone) :])


def test_padding_stays_behind_and_counts_for_nothing() -> None:
    valid = torch.arange(9) < torch.tensor([[9], [6]])
    state = Dense(tokens=9, prefix=1, batch=2, valid=valid)
    for step in ToMe(r=3).plan(Layout(9, 1, None, 2), (3, 3)):
        assert step is not None
        cue = exact_cue(0, 2, state.length)
        state = after(state, step.match(cue, state), cue)
    assert state.valid is not None
    assert state.valid.sum(1).tolist() == [4, 3]
    assert (state.valid.int().diff(dim=1) <= 0).all()
    assert (state.sizes() * state.valid).sum(1).tolist() == [9, 6]


# Plans, block after block.


def walk(
    method: Method, layout: Layout, schedule: tuple[int, ...], seed: int, expected: Reduce
) -> None:
    """Run the plan of a method on random cues; every block has to do what loops do, and to remove
    as many tokens as the plan says."""
    state = Dense(layout.tokens, layout.prefix, layout.grid, batch=2)
    spelled = [fresh(layout.tokens) for _ in range(2)]
    for block, step in enumerate(method.plan(layout, schedule)):
        cue = exact_cue(seed + block, 2, state.length)
        spelled = [expected(block, tokens, cue[i]) for i, tokens in enumerate(spelled)]
        if step:
            done = step.match(cue, state)
            assert done.gone.shape[1] == step.removes > 0
            state = after(state, done, cue)
        for image, tokens in enumerate(spelled):
            assert groups(state.whole, image) == spelled_out(tokens), (block, image)


@st.composite
def journeys(draw: st.DrawFn, side: int = 12) -> tuple[Layout, tuple[int, ...]]:
    """A grid, a prefix, a depth, and a number for every block."""
    grid = draw(st.integers(1, side)), draw(st.integers(1, side))
    prefix, depth = draw(st.sampled_from([0, 1, 5])), draw(st.integers(1, 8))
    most = max(grid[0] * grid[1] // 2, 1)
    schedule = draw(st.lists(st.integers(0, most), min_size=depth, max_size=depth))
    return Layout(prefix + grid[0] * grid[1], prefix, grid, depth), tuple(schedule)


@settings(max_examples=150, deadline=None)
@given(
    journeys(), SEEDS, st.none() | st.integers(2, 7), st.integers(0, 2), st.sampled_from(LOCATIONS)
)
def test_lgtm_does_in_every_block_what_loops_do(
    journey: tuple[Layout, tuple[int, ...]],
    seed: int,
    window: int | None,
    skip: int,
    location: str,
) -> None:
    layout, schedule = journey
    assert layout.grid is not None
    method = LGTM(r=0, window=window, skip=skip, location=location)
    expected = lgtm(list(schedule), layout.prefix, layout.grid, skip, window, location)
    walk(method, layout, schedule, seed, expected)


@LAWS
@given(journeys(), SEEDS)
def test_tome_and_drop_do_in_every_block_what_loops_do(
    journey: tuple[Layout, tuple[int, ...]], seed: int
) -> None:
    layout, schedule = journey
    walk(ToMe(r=0), layout, schedule, seed, tome(list(schedule), layout.prefix))
    walk(DFE(r=0), layout, schedule, seed, tome(list(schedule), layout.prefix))
    walk(Drop(r=0), layout, schedule, seed, drop(list(schedule), layout.prefix))


@pytest.mark.parametrize("patches", [1, 2, 3, 7, 40])
def test_lgtm_takes_tokens_without_a_grid_as_a_square(patches: int) -> None:
    layout, schedule = Layout(patches + 1, 1, None, 4), (patches // 2,) * 4
    walk(LGTM(r=0, skip=0), layout, schedule, 0, lgtm(list(schedule), 1, (1, 1), 0, first(patches)))


def first(patches: int) -> int:
    """Half the side of a square for that many patches."""
    return max(2, math.ceil(math.sqrt(patches)) // 2)


def test_lgtm_starts_at_half_the_side_and_grows_until_a_window_holds_everything() -> None:
    def removed(r: int) -> list[int]:
        plan = LGTM(r=r).plan(Layout(197, 1, (14, 14), 12), (0, 0, *[r] * 10))
        return [step.removes if step else 0 for step in plan]

    # Five local blocks, with four windows each, of side 7, 8, 9, 10 and 11; the last of those are
    # mostly padding and run out of tokens. 12 exceeds the square root of 126.
    assert removed(16) == [0, 0, 16, 16, 16, 13, 9, *[16] * 5]
    # What does not divide by the number of windows is rounded up while merging is local.
    assert removed(13) == [0, 0, 16, 16, 16, 13, 9, *[13] * 5]
    assert removed(8) == [0, 0, 8, 8, 8, 8, 7, 2, *[8] * 4]


@LAWS
@given(journeys(side=6), SEEDS)
def test_lgtm_never_matches_across_windows(
    journey: tuple[Layout, tuple[int, ...]], seed: int
) -> None:
    layout, schedule = journey
    assume(schedule[0] and layout.patches >= 4)
    assert layout.grid is not None
    step = LGTM(r=0, skip=0, window=2).plan(layout, schedule)[0]
    assume(step is not None)
    assert step is not None
    done = step.match(
        exact_cue(seed, 2, layout.tokens), Dense(layout.tokens, layout.prefix, layout.grid, batch=2)
    )
    for image in range(2):
        for _, members in groups(done, image)[layout.prefix :]:
            cells = {divmod(member - layout.prefix, layout.grid[1]) for member in members}
            assert len({(row // 2, column // 2) for row, column in cells}) == 1


# The random cue.


def places(tokens: int, batch: int = 1) -> torch.Tensor:
    return torch.arange(tokens).expand(batch, -1)


def test_random_cues_depend_on_seed_and_place_alone() -> None:
    one, many = (cues.random(places(50, batch), seed=4) for batch in (1, 3))
    assert torch.equal(many, one.expand(3, -1, -1))
    assert torch.equal(cues.random(places(20), seed=4), one[:, :20])
    assert torch.equal(cues.random(places(50).flip(1), seed=4), one.flip(1))
    assert not torch.equal(cues.random(places(50), seed=5), one)
    assert cues.random(places(3), seed=10**30).isfinite().all()


def test_random_cues_drop_every_position_about_as_often() -> None:
    counts = torch.zeros(40)
    for seed in range(400):
        gone = match.lowest(cues.random(places(40), seed).norm(dim=-1), 10, 0).gone
        counts[gone[0]] += 1
    assert counts.sum() == 4000
    # A quarter of 400 draws, give or take five deviations.
    assert counts.min() > 56
    assert counts.max() < 144


def test_places_of_windows_are_made_once_and_fit_training_and_counting() -> None:
    layout, order = match.Windows.cut(30, 5, 6, 3, 4), torch.arange(30).expand(2, -1)
    cue = exact_cue(0, 2, 31)
    with torch.inference_mode():
        first = match.windowed(cue, layout, 1, order)
    assert layout.tensors(cue)[0] is layout.tensors(cue)[0]
    again = match.windowed(cue, match.Windows.cut(30, 5, 6, 3, 4), 1, order)
    assert torch.equal(first.slot, again.slot)
    x = torch.randn(2, 31, 3, dtype=torch.float64, requires_grad=True)
    again.fold(x).sum().backward()  # what inference made cannot be kept for a gradient
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = match.windowed(mode.from_tensor(cue), layout, 1, mode.from_tensor(order))
    assert fake.keep.shape == first.keep.shape
    assert type(layout.tensors(cue)[0]) is torch.Tensor


def test_constants_of_a_transform_end_with_it() -> None:
    """What is made within one of `torch.func` cannot be used in the next."""
    cue = exact_cue(0, 1, 37).double()

    def merged(x: Tensor) -> Tensor:
        return match.bipartite(cue + 0 * x, 5, 1).fold(x).square().sum()

    def product() -> Tensor:
        return torch.func.jvp(torch.func.grad(merged), (cue,), (cue,))[1]

    assert torch.equal(product(), product())
