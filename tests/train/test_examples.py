"""Examples: order and augmentation follow from the seed alone."""

import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training import Blobs

from vitfold.errors import TrainError
from vitfold.train.examples import Examples, Order, load, own_randomness, seed_all


@given(
    images=st.integers(8, 60),
    batch=st.integers(1, 3),
    accumulate=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_sees_no_image_twice_and_processes_share_it(
    images: int, batch: int, accumulate: int, seed: int
) -> None:
    shares = (
        [Order(images, batch, accumulate, seed, 2, rank) for rank in range(2)]
        if (images >= 2 * batch * accumulate)
        else [Order(images, batch, accumulate, seed)]
    )
    steps = shares[0].steps
    visits = [place for order in shares for b in order.batches(0, steps) for place in b]
    assert len(set(visits)) == len(visits) == steps * batch * accumulate * len(shares)
    assert {epoch for epoch, _ in visits} == {0}
    later = [place[1] for order in shares for b in order.batches(steps, 2 * steps) for place in b]
    assert len(set(later)) == len(later)


@given(start=st.integers(0, 14), seed=st.integers(0, 2**31))
def test_going_on_sees_what_would_have_come(start: int, seed: int) -> None:
    order = Order(25, 2, 2, seed)
    everything = list(order.batches(0, 15))
    assert list(order.batches(start, 15)) == everything[start * 2 :]


def test_two_processes_see_together_what_one_sees() -> None:
    one, both = Order(26, 4, 2, 7), [Order(26, 2, 2, 7, 2, rank) for rank in range(2)]
    for whole, left, right in zip(*(o.batches(0, 9) for o in (one, *both)), strict=True):
        assert whole == left + right


def test_too_few_images_are_refused() -> None:
    with pytest.raises(TrainError, match="7 images are fewer than the 8 of one step"):
        Order(7, 4, 2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_augmented_as_its_place_decides(workers: int) -> None:
    examples, order = Examples(Blobs(), 5), Order(24, 4, 1, 5)
    alone = {place: examples[place][0] for b in order.batches(3, 9) for place in b}
    loaded = load(examples, order, 3, 9, workers)
    for places, (images, _) in zip(order.batches(3, 9), loaded, strict=True):
        for place, image in zip(places, images, strict=True):
            assert torch.equal(alone[place], image)
    assert not torch.equal(examples[0, 1][0], examples[1, 1][0])
    assert not torch.equal(examples[0, 1][0], Examples(Blobs(), 6)[0, 1][0])


def test_randomness_of_others_is_left_alone() -> None:
    def draw() -> list[float]:
        return [random.random(), float(numpy.random.rand()), float(torch.rand(()))]

    seed_all(1)
    first = draw()
    seed_all(1)
    with own_randomness():
        seed_all(2)
        draw()
    assert draw() == first
