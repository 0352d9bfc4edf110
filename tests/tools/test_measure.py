"""What is measured: operations, memory, rates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import images, registered

import vitfold
from vitfold.errors import DataError
from vitfold.tools.measure import Throughput, batch_of, flops, peak_memory, throughput


def folded(name: str = "vit_tiny_patch16_224", depth: int = 3) -> torch.nn.Module:
    return vitfold.fold(registered(name, depth=depth), vitfold.ToMe(r=5))


def test_flops_are_counted_by_hand() -> None:
    model = registered("vit_tiny_patch16_224", depth=1)
    n, d, patches, classes = 26, 192, 25, 1000
    by_hand = 2 * (patches * d * 3 * 256 + 12 * n * d * d + 2 * n * n * d + d * classes)
    assert flops(model, images(model, 1)) == by_hand


def test_flops_of_a_fold_include_matching() -> None:
    """After one block with r tokens merged: a shorter MLP, and the similarities."""
    model = registered("vit_tiny_patch16_224", depth=1)
    dense = flops(model, images(model, 1))
    vitfold.fold(model, vitfold.ToMe(r=5))
    saved, matching = 2 * 5 * 8 * 192 * 192, 2 * 12 * 13 * 64
    assert flops(model, images(model, 1)) == dense - saved + matching


def test_what_is_counted_is_a_call_in_evaluation() -> None:
    for method in vitfold.ToMe(r=5), vitfold.LTMP(merge_threshold=0.5, prune_threshold=0.02):
        model = vitfold.fold(registered("vit_tiny_patch16_224"), method)
        expected = flops(model, images(model, 1))
        model.blocks.train()
        assert flops(model, images(model, 1)) == expected
        assert model.blocks.training
        assert not model.norm.training


def test_peak_memory_holds_at_least_the_largest_activation() -> None:
    model = registered("vit_tiny_patch16_224")
    hidden = 4 * 2 * 26 * 4 * 192
    assert hidden < peak_memory(model, images(model, 2)) < 40 * hidden


@pytest.mark.parametrize(
    "method",
    [
        vitfold.ToMe(r=5),
        vitfold.LGTM(r=4),
        vitfold.Ward(r=5),
        vitfold.EViT(flops=0.8),
        vitfold.MergeDrop(r=2, drop=2),
        vitfold.LTMP(),
        vitfold.LTMP(merge_threshold=0.5, prune_threshold=0.02),
        vitfold.WardCut(flops=0.8),
    ],
    ids=str,
)
def test_a_fold_needs_no_more_memory_than_the_dense_model(method: vitfold.Method) -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    pixels = images(model, 8)
    dense = peak_memory(model, pixels)
    assert peak_memory(vitfold.fold(model, method), pixels) <= dense


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "method",
    [
        vitfold.ToMe(r=500),
        vitfold.LGTM(r=500, skip=0),
        vitfold.Ward(r=500),
        vitfold.MergeDrop(r=300, drop=200),
        vitfold.EViT(r=1000, blocks=(0, 1)),
    ],
    ids=str,
)
def test_thousands_of_tokens_need_no_more_memory_than_the_dense_model(
    method: vitfold.Method,
) -> None:
    model = registered("vit_small_patch16_224", depth=2, img_size=96 * 16)
    pixels = images(model, 1)
    dense = peak_memory(model, pixels)
    assert peak_memory(vitfold.fold(model, method), pixels) <= dense


@pytest.mark.parametrize("batch", [1, 2])
def test_scores_of_large_images_need_no_more_memory_than_the_dense_model(batch: int) -> None:
    model = registered("vit_tiny_patch16_224", img_size=560, depth=1)
    pixels = images(model, batch)
    dense = peak_memory(model, pixels)
    vitfold.fold(model, vitfold.LTMP(merge_threshold=0.9, prune_threshold=1e-3))
    assert peak_memory(model, pixels) <= dense


def test_throughput_gives_median_and_quartiles() -> None:
    rate = Throughput.of(8, [1.0, 2.0, 4.0])
    assert (rate.median, rate.repeats) == (4.0, 3)
    assert rate.low == pytest.approx(3.0)
    assert rate.high == pytest.approx(6.0)


def test_throughput_leaves_the_mode_alone() -> None:
    model = registered("vit_tiny_patch16_224").train()
    model.head.eval()
    throughput(model, images(model), repeats=1, warmup=0)
    assert model.training
    assert not model.head.training


def test_images_are_counted_whatever_comes_first() -> None:
    assert batch_of({"input_ids": torch.zeros(1, 4), "pixel_values": torch.zeros(3, 3, 8, 8)}) == 3
    assert batch_of({"patch_coord": torch.zeros(2, 4, 2), "patches": torch.zeros(2, 4, 8)}) == 2


def test_no_repeats_is_refused() -> None:
    model = registered("vit_tiny_patch16_224")
    with pytest.raises(DataError, match="repeats=0"):
        throughput(model, images(model), repeats=0)


@pytest.mark.parametrize("measured", [flops, throughput, peak_memory])
def test_a_shape_is_no_input(measured: Callable[[torch.nn.Module, Any], object]) -> None:
    with pytest.raises(DataError, match=r"a tuple is no input: give images \[B, C, H, W\]"):
        measured(folded(), (1, 3, 80, 80))


@pytest.mark.parametrize("inputs", [None, "x", 3, {}, {"x": None}])
def test_what_is_no_input_is_refused(inputs: Any) -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224"), vitfold.ToMe(r=2))
    for what in (flops, vitfold.throughput, vitfold.trace):
        with pytest.raises(DataError, match="give images"):
            what(model, inputs)


@pytest.mark.parametrize("odd", [{"repeats": 1.5}, {"repeats": True}, {"warmup": None}])
def test_rounds_are_whole_numbers(odd: dict[str, Any]) -> None:
    model = registered("vit_tiny_patch16_224")
    with pytest.raises(DataError, match="expected a whole number"):
        vitfold.throughput(model, images(model, 1), **odd)
