"""Tuning finds the fold that loses least of those that keep a goal; clocks are made up here."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cli import pictures, vitfold_
from support.small import vit
from torch import Tensor, nn

import vitfold
from vitfold.cli import names
from vitfold.errors import DataError, MethodError, TuneError, UnsupportedModel
from vitfold.folding.calls import fold_of, folds
from vitfold.lab.tuning import card, measures, search, tune
from vitfold.lab.tuning.costs import Costs
from vitfold.lab.tuning.goal import goal_of
from vitfold.lab.tuning.shape import Shape
from vitfold.lab.tuning.trials import FILE, Share, Trial
from vitfold.methods import Base
from vitfold.tokens.layout import Layout
from vitfold.tools.fidelity import Fidelity
from vitfold.tools.intervals import Estimate
from vitfold.tools.measure import Throughput
from vitfold.tools.removal import removed
from vitfold.tools.sensitivity import basis_of, directions, fold_along

LAYOUT = Layout(tokens=197, prefix=1, grid=(14, 14), depth=12)


def model() -> nn.Module:
    return vit(depth=12, embed_dim=24).float()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(0))


# Shapes.


shapes = st.builds(
    Shape,
    method=st.sampled_from(["tome", "ward"]),
    first=st.integers(0, 6),
    ramp=st.sampled_from([-0.5, 0.0, 0.5]),
    every=st.integers(1, 4),
    multiple=st.sampled_from([1, 8]),
    factors=st.one_of(
        st.just(()),
        st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=12, max_size=12).map(tuple),
    ),
)


@given(shapes, st.floats(0, 98))
def test_a_shape_removes_what_can_leave(shape: Shape, rate: float) -> None:
    numbers, left = shape.numbers(rate, LAYOUT), LAYOUT.patches
    for block, number in enumerate(numbers):
        assert 0 <= number <= left // 2
        if block < shape.first or (block - shape.first) % shape.every:
            assert number == 0
        left -= number
        if number and number < (left + number) // 2:
            assert (left + LAYOUT.prefix) % shape.multiple == 0
    assert [step is not None for step in shape.plan(numbers, LAYOUT)] == [n > 0 for n in numbers]


@given(shapes)
def test_neighbours_differ_in_one_thing(shape: Shape) -> None:
    for other in shape.neighbours(LAYOUT.depth):
        differences = [name for name, value in vars(shape).items() if vars(other)[name] != value]
        assert len(differences) == 1


def test_costs_learn_what_is_timed() -> None:
    """From a few timings of a machine on which merging is dear, others are told to 2 %."""

    def truth(shape: Shape, numbers: tuple[int, ...]) -> float:
        parts = Costs(LAYOUT, 384)._parts(shape, numbers)
        weights = torch.tensor([0.05, 0.3, 0.15, 0.5, 0.08, 0.04], dtype=torch.float64)
        return float(parts @ weights)

    costs, shape = Costs(LAYOUT, 384), Shape("tome")
    dense = (0,) * 12
    assert costs.share(shape, dense) == pytest.approx(1, abs=0.01)
    others = [replace(shape, first=4), replace(shape, every=3), replace(shape, ramp=0.5)]
    tests = [(s, s.numbers(rate * s.every, LAYOUT)) for s in others for rate in (6, 14)]
    before = max(abs(costs.share(*test) - truth(*test)) for test in tests)
    for rate in (4, 10, 16):
        numbers = shape.numbers(rate, LAYOUT)
        costs.add(shape, numbers, truth(shape, numbers))
    after = max(abs(costs.share(*test) - truth(*test)) for test in tests)
    assert after < 0.02 < before


# Searches, on a machine that is made up.


class Machine:
    """What folds take and lose here: `merging` is what a block that merges takes, as a share of
    the dense model's time, `doubt` how far timings go apart; ramps that merge late lose less, and
    Ward less than the others."""

    def __init__(self, merging: float = 0.005, quantizing: float = 0.0) -> None:
        self.merging, self.quantizing = merging, quantizing
        self.compared = self.timed = 0
        self.doubt = 0.001

    def share(self, method: Base | None) -> float:
        numbers = list(method.r) if method is not None else []  # type: ignore[attr-defined]
        tokens, total = 50, 0.0
        for number in numbers + [0] * (12 - len(numbers)):
            total += tokens / 3 + (tokens - number) * 2 / 3
            tokens -= number
        return total / 600 + self.merging * sum(number > 0 for number in numbers)

    def lost(self, method: Base | None) -> float:
        if method is None:
            return 0.0
        numbers = list(method.r)  # type: ignore[attr-defined]
        early = sum(number * (14 - block) for block, number in enumerate(numbers))
        return early / 12000 * (0.8 if method.name == "ward" else 1.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made_up = Machine()

    def compared(self: measures.Measures, folded: nn.Module, beside: Any = None) -> Near:
        made_up.compared += 1
        loss = made_up.lost(fold_of(folded).method if folds(folded) else None)
        return Near(1 - loss)

    def served_fidelity(self: measures.Measures, method: Base | None) -> Fidelity:
        return near(1 - made_up.lost(method) - made_up.quantizing)

    def race(self: measures.Measures, methods: Mapping[str, Base], rounds: int) -> dict[str, Share]:
        made_up.timed += len(methods)
        shares = {name: made_up.share(method) for name, method in methods.items()}
        doubt = made_up.doubt
        return {name: Share(share, share - doubt, share + doubt) for name, share in shares.items()}

    monkeypatch.setattr(measures.Measures, "_compared", compared)
    monkeypatch.setattr(measures.Measures, "served_fidelity", served_fidelity)
    monkeypatch.setattr(measures.Measures, "race", race)
    monkeypatch.setattr(measures.Measures, "dense_rate", Throughput(100.0, 99.0, 101.0, 5))
    return made_up


def near(cosine: float) -> Fidelity:
    return Fidelity(6, cosine=Estimate(cosine, cosine - 0.01, min(1.0, cosine + 0.01)))


class Near:
    """What a comparison with that cosine comes to."""

    def __init__(self, cosine: float) -> None:
        self.cosine = cosine

    def result(self) -> Fidelity:
        return near(self.cosine)

    @property
    def all(self) -> dict[str, Tensor]:
        return {"cosine": torch.full((6,), self.cosine, dtype=torch.float64)}


def tuned(**options: Any) -> Any:
    return vitfold.tune(model(), images(), **({"minutes": 5} | options))


def test_the_speed_is_kept_and_the_least_is_lost(machine: Machine) -> None:
    result = tuned(speedup=1.5)
    method = fold_of(result.model).method
    assert machine.share(method) <= 1 / 1.5
    assert method.name == "ward"
    # Nothing simple that is as fast loses less.
    for name in ("ward", "tome"):
        for first in range(6):
            for ramp in (-0.5, 0.0, 0.5):
                shape = Shape(name, first=first, ramp=ramp)
                fast = (shape.fold(shape.numbers(r / 4, result_layout())) for r in range(1, 80))
                fast_enough = [fold for fold in fast if machine.share(fold) <= 1 / 1.5]
                least = min(map(machine.lost, fast_enough), default=1.0)
                assert machine.lost(method) <= least * 1.05
    assert result.speedup >= 1.5
    assert result.slower is None
    assert sum(result.removes) == sum(removed(result.model))


def result_layout() -> Layout:
    return Layout(tokens=50, prefix=1, grid=(7, 7), depth=12)


def test_milliseconds_and_images_per_second_are_kept(machine: Machine) -> None:
    """The dense model takes 10 ms for an image, 40 for a batch of four."""
    for goal, share in (({"latency_ms": 30}, 0.75), ({"throughput": 160}, 0.625)):
        result = tuned(batch_size=4, **goal)
        taken = machine.share(fold_of(result.model).method)
        assert share - 0.04 < taken <= share


def test_a_share_of_the_flops_is_kept(machine: Machine) -> None:
    result = tuned(flops=0.6)
    dense = vitfold.flops(model(), images())
    assert 0.59 < vitfold.flops(result.model, images()) / dense <= 0.602


def test_the_fastest_of_those_that_stay_near(machine: Machine) -> None:
    result = tuned(cosine=0.95)
    method = fold_of(result.model).method
    assert machine.lost(method) <= 0.05
    tome = tuned(cosine=0.95, methods=["tome"])
    assert fold_of(tome.model).method.name == "tome"
    assert result.speedup > tome.speedup > 1.2


def test_what_the_runtime_loses_is_lost_by_the_fold_no_more(machine: Machine) -> None:
    machine.quantizing = 0.02
    assert machine.lost(fold_of(tuned(cosine=0.95).model).method) <= 0.03 + 1e-9
    machine.quantizing = 0.2
    with pytest.raises(TuneError, match=r"cosine=0\.95 was not kept"):
        tuned(cosine=0.95)


def test_where_nothing_is_faster_the_model_stays_dense(machine: Machine) -> None:
    machine.merging = 0.5
    for goal in ({"speedup": 1.2}, {"cosine": 0.9}, {"flops": 0.6}):
        dense = model()
        result = vitfold.tune(dense, images(), **goal)  # type: ignore[arg-type]
        assert not folds(dense)
        assert result.speedup == 1
        assert result.slower is not None
        assert "the model stays dense" in result.slower
    assert "of its time" in str(tuned(speedup=1.2).slower)


def test_where_timings_go_far_apart_that_is_said(machine: Machine) -> None:
    machine.doubt = 0.4
    words = tuned(speedup=1.2).slower
    assert re.search(r"no fold is surely faster .* takes 0\.\d+ \(0\.\d+ to 1\.\d+\)", str(words))


def test_few_blocks_merge_where_merging_is_dear(machine: Machine) -> None:
    machine.merging = 0.12
    numbers = fold_of(tuned(speedup=1.15).model).schedule
    assert sum(number > 0 for number in numbers) <= 4


def test_a_goal_out_of_reach_says_what_is_nearest(machine: Machine) -> None:
    with pytest.raises(TuneError, match=r"speedup=20 was not kept .* the fastest of \d+ is \d"):
        tuned(speedup=20)
    with pytest.raises(MethodError, match=r"agreement: this model .* give cosine="):
        tuned(agreement=0.9)


def test_a_goal_that_the_dense_model_keeps_takes_no_fold(machine: Machine) -> None:
    result = tuned(latency_ms=50, batch_size=4)
    assert result.idle
    assert "the dense model keeps latency_ms=50" in str(result.slower)
    assert machine.compared == 0


def test_what_was_measured_is_not_measured_again(machine: Machine, tmp_path: Path) -> None:
    first = tuned(speedup=1.5, directory=tmp_path / "out")
    counts = machine.compared, machine.timed
    again = tuned(speedup=1.5, directory=tmp_path / "out")
    assert machine.compared == counts[0]
    assert machine.timed - counts[1] <= search.FINALISTS * search.AGAIN  # the last race alone
    assert fold_of(again.model).method == fold_of(first.model).method
    before = machine.compared
    tuned(speedup=1.3, directory=tmp_path / "out")
    fresh = machine.compared - before
    machine.compared = 0
    tuned(speedup=1.3)
    assert fresh <= machine.compared
    with pytest.raises(DataError, match="another batch_size"):
        tuned(speedup=1.5, batch_size=2, directory=tmp_path / "out")
    (tmp_path / "out" / FILE).write_text("{}")
    with pytest.raises(DataError, match="no trials that a tuning wrote"):
        tuned(speedup=1.5, directory=tmp_path / "out")


def test_a_search_that_is_stopped_keeps_its_best(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest, left = measures.Measures.trial, iter(range(6))

    def trial(self: measures.Measures, method: Base) -> Trial:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return honest(self, method)

    monkeypatch.setattr(measures.Measures, "trial", trial)
    result = tuned(speedup=1.5, directory=tmp_path)
    assert result.stopped
    assert machine.share(fold_of(result.model).method) <= 1 / 1.5
    monkeypatch.undo()
    assert len(json.loads((tmp_path / FILE).read_text())["trials"]) >= 4
    monkeypatch.setattr(measures.Measures, "trial", stop)  # before anything is known
    with pytest.raises(KeyboardInterrupt):
        tuned(speedup=1.5)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_budget_ends_a_search(machine: Machine) -> None:
    assert len(tuned(speedup=1.5, trials=3).trials) <= 3 + search.AGAIN * search.AGAIN
    told: list[float] = []
    tuned(speedup=1.5, trials=5, tell=lambda spent, _: told.append(spent))
    assert told == sorted(told)
    assert told[-1] == 1


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, MethodError, "one goal, got none"),
    ({"speedup": 1.5, "flops": 0.5}, MethodError, "got speedup and flops"),
    ({"speedup": 1}, MethodError, "speedup=1: expected a number above 1"),
    ({"cosine": 1.5}, MethodError, "cosine=1.5"),
    ({"speedup": 1.5, "runtime": "openvin"}, UnsupportedModel, "did you mean 'openvino'"),
    ({"speedup": 1.5, "int8": True}, UnsupportedModel, "'eager' has no INT8"),
    ({"speedup": 1.5, "methods": ["ltmp"]}, MethodError, "ltmp is not tuned"),
    ({"speedup": 1.5, "methods": []}, MethodError, "expected some of"),
    ({"speedup": 1.5, "batch_size": 0}, MethodError, "batch_size=0"),
    ({"speedup": 1.5, "minutes": 0}, MethodError, "minutes=0"),
    ({"speedup": 1.5, "trials": 1.5}, MethodError, "trials=1.5"),
]


@pytest.mark.parametrize(("options", "error", "words"), MISTAKES)
def test_mistakes_are_one_line(options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        tuned(**options)
    assert "\n" not in str(raised.value)


def test_no_images_are_refused() -> None:
    for wrong in (images()[:0], images()[0], "photos"):
        with pytest.raises(DataError, match=r"\[N, C, H, W\]"):
            vitfold.tune(model(), wrong, speedup=1.5)  # type: ignore[arg-type]


# As it is used.


def test_a_tuned_model_is_saved_with_its_card(machine: Machine, tmp_path: Path) -> None:
    result = tuned(speedup=1.5)
    result.save(tmp_path, "vitfold tune ...")
    page, told = (tmp_path / card.PAGE).read_text(), json.loads((tmp_path / card.FILE).read_text())
    assert page.startswith("---\nlibrary_name: vitfold")
    assert "vitfold tune ..." in page
    assert (tmp_path / card.PICTURE).exists()
    assert told["method"]["name"] == "ward"
    assert told["speed"]["speedup"] == pytest.approx(result.speedup)
    assert told["goal"] == {"speedup": 1.5}
    assert told["removed"] == list(result.removes)
    assert len(told["trials"]) == len(result.trials)
    again = vitfold.load(tmp_path, model())
    assert torch.equal(again(images()), result.model(images()))
    machine.merging = 0.5
    tuned(speedup=1.5).save(tmp_path)  # dense now
    assert not (tmp_path / "plan.json").exists()
    assert json.loads((tmp_path / card.FILE).read_text())["method"] is None


def test_real_clocks_and_a_real_runtime(tmp_path: Path) -> None:
    """All of it once; what comes out depends on the machine."""
    small = vit().float()
    options: dict[str, Any] = {"methods": ["tome"], "trials": 1, "repeats": 1, "batch_size": 2}
    result = vitfold.tune(small, images(), flops=0.8, runtime="onnxruntime", **options)
    assert bool(folds(small)) is (result.slower is None)
    assert result.dense.median > 0
    if result.fidelity is not None:
        assert result.fidelity.images == 6
    result.save(tmp_path)
    assert (tmp_path / card.FILE).exists()


def test_directions_come_of_the_images_and_are_saved(tmp_path: Path) -> None:
    dense = vit().float()
    small = vit().float()
    options: dict[str, Any] = {"methods": ["fisher"], "trials": 1, "repeats": 1}
    result = vitfold.tune(small, images(), flops=0.8, batch_size=2, **options)
    trial = result.trials[0]
    assert trial.method.name == "fisher"
    looked_at = directions(dense, images())
    again = fold_along(vit().float(), trial.method, looked_at)
    near = vitfold.fidelity(again, images(), dense=dense)
    assert trial.fidelity.cosine is not None
    assert near.cosine is not None
    assert trial.fidelity.cosine.mean == pytest.approx(near.cosine.mean, abs=1e-6)
    if result.slower is None:
        assert torch.equal(basis_of(small), looked_at)  # type: ignore[arg-type]
        result.save(tmp_path)
        loaded = vitfold.load(tmp_path, vit().float())
        assert torch.equal(loaded(images()), small(images()))


def test_a_folded_model_is_tuned_anew(machine: Machine) -> None:
    other = vitfold.fold(model(), "drop", r=20)
    result = vitfold.tune(other, images(), speedup=1.2)
    assert result.model is other
    assert fold_of(other).method.name == "ward"


def test_the_command(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, out = pictures(tmp_path / "photos"), tmp_path / "out"
    base = ("tune", "test_vit", "--no-pretrained", "--data-dir", photos, "-o", out)
    monkeypatch.setattr(machine, "share", lambda method: 0.8 if method else 1.0)
    assert vitfold_(monkeypatch, *base, "--speedup", 1.2, "--trials", 2) == 0
    told = capsys.readouterr().out
    assert "times as fast as dense" in told
    assert {path.name for path in out.iterdir()} == {
        "README.md", "card.json", "pareto.png", "plan.json", "trials.json"
    }  # fmt: skip
    assert "vitfold tune test_vit" in (out / "README.md").read_text()
    assert vitfold_(monkeypatch, *base, "--speedup", 1.2, "--trials", 2) == 0
    capsys.readouterr()
    monkeypatch.setattr(machine, "share", lambda method: 1.5)
    (out / FILE).unlink()
    assert vitfold_(monkeypatch, *base, "--speedup", 1.2, "--trials", 2) == 0
    assert "the model stays dense" in " ".join(capsys.readouterr().out.split())
    assert not (out / "plan.json").exists()
    assert vitfold_(monkeypatch, *base, "--speedup", 1.2, "--trials", 2, "--strict") == 1
    capsys.readouterr()
    assert vitfold_(monkeypatch, *base) == 2
    assert "one goal" in capsys.readouterr().err
    elsewhere = (*base[:-1], tmp_path / "photos")
    assert vitfold_(monkeypatch, *elsewhere, "--speedup", 1.2) == 2
    assert "holds other files" in capsys.readouterr().err


def test_names_and_numbers_of_the_help_are_those_of_the_code() -> None:
    assert names.MINUTES == tune.MINUTES
    assert goal_of({"speedup": 1.5}).words == "1.5 times as fast as the dense model"
