"""Rows of a benchmark, and what is said about them."""

from dataclasses import replace

import pytest
import torch
from support.models import images, registered

import vitfold
from vitfold.tools.baselines import BOUND, DENSE, EAGER, FOLDED, TEXTBOOK, candidates
from vitfold.tools.bench import Row, bench, warnings


def folded(name: str = "vit_tiny_patch16_224", depth: int = 3) -> torch.nn.Module:
    return vitfold.fold(registered(name, depth=depth), vitfold.ToMe(r=5))


def test_bench_rows_are_relative_to_dense_and_bound() -> None:
    models = candidates(folded())
    rows = {row.name: row for row in bench(models, images(models[DENSE]), repeats=1, warmup=0)}
    assert rows[DENSE].speedup == 1
    assert rows[BOUND].share == 1
    assert rows[FOLDED].share == pytest.approx(
        rows[FOLDED].images_per_second / rows[BOUND].images_per_second
    )


ROW = Row(
    FOLDED, 8, images_per_second=100.0, low=99.0, high=101.0, gflops=0.6, flops_share=0.6,
    memory_mb=1.0, speedup=1.5, share=0.97,
)  # fmt: skip


def test_rows_hold_the_share_of_the_dense_flops() -> None:
    models = candidates(vitfold.fold(registered("vit_tiny_patch16_224"), vitfold.ToMe(flops=0.8)))
    rows = {row.name: row for row in bench(models, images(models[DENSE]), repeats=1, warmup=0)}
    assert rows[DENSE].flops_share == 1
    assert rows[FOLDED].flops_share == pytest.approx(0.8, abs=0.02)
    assert rows[BOUND].flops_share < rows[FOLDED].flops_share


def test_what_is_timed_may_be_another_than_what_is_counted() -> None:
    models = candidates(folded())
    pixels = images(models[DENSE])
    served: dict[str, torch.nn.Module] = {n: torch.nn.Identity() for n in (DENSE, BOUND, FOLDED)}
    counted = {row.name: row.gflops for row in bench(models, pixels, repeats=1, warmup=0)}
    served[EAGER] = models[DENSE]
    rows = bench(models, pixels, served=served, memory=False, repeats=3)
    assert TEXTBOOK in counted
    assert [row.name for row in rows] == [DENSE, BOUND, FOLDED]
    for row in rows:
        assert row.gflops == counted[row.name]
        assert row.memory_mb is None
        assert row.eager_speedup is not None
        assert row.eager_speedup > 2  # doing nothing takes no time


def test_a_warning_says_where() -> None:
    [warning] = warnings([replace(ROW, speedup=0.9)], place="in OpenVINO here")
    assert "slower than the dense model in OpenVINO here at batch size 8" in warning


def test_nothing_is_said_of_what_is_in_order() -> None:
    assert warnings([ROW, replace(ROW, name=DENSE, speedup=1.0, share=0.6)], 0.6) == []


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ({"speedup": 0.9}, "slower than the dense model here at batch size 8"),
        ({"share": 1.45}, "the machine was busy: 1.45 of the bound at batch size 8 cannot be"),
        ({"low": 80.0, "high": 120.0}, "quartiles of folded at batch size 8 lie 40% apart"),
        ({"flops_share": 1.0}, "0.6 of the dense FLOPs were asked for, and this fold costs 1.00"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_what_makes_figures_worthless_is_said(odd: dict[str, float], text: str) -> None:
    [warning] = warnings([replace(ROW, **odd)], 0.6)  # type: ignore[arg-type]
    assert text in warning
