"""What methods can be asked for, what they answer, and what they refuse."""

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import ramp
from support.small import MODELS, images, vit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vitfold
from vitfold import (
    DFE,
    LGTM,
    LTMP,
    METHODS,
    Drop,
    EViT,
    FoldError,
    Method,
    MethodError,
    PruneMerge,
    Step,
    ToMe,
    VitfoldError,
    Ward,
)
from vitfold.folding.calls import fold_of
from vitfold.folding.fit import NEAR
from vitfold.methods.registry import from_json, ready
from vitfold.methods.schedule import along, per_block
from vitfold.tokens.layout import Layout

ALL = [ToMe, DFE, LGTM, Drop, Ward]

counting: Any = importlib.import_module("vitfold.folding.flops")  # `vitfold.flops` is a function


# What is chosen.


@pytest.mark.parametrize("kind", ALL)
def test_methods_hold_what_was_chosen(kind: type[Method]) -> None:
    method = kind(r=7)
    assert (method, hash(method)) == (kind(r=7), hash(kind(r=7)))
    assert method != kind(r=8)
    assert repr(method).startswith(f"{kind.__name__}(r=7")
    assert str(method) == f"{kind.__name__}(r=7)"
    assert str(kind(flops=0.5, cue="v")) == f"{kind.__name__}(flops=0.5, cue='v')"
    assert from_json(json.loads(json.dumps(method.to_json()))) == method
    assert vitfold.METHODS[kind.name] is kind
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.r = 8  # type: ignore[misc]


def test_options_are_those_of_the_definition() -> None:
    assert ToMe(13, "v", 2) == ToMe(r=13, cue="v", skip=2, proportional=True)
    assert DFE(13, 3) == DFE(r=13, skip=3)
    assert LGTM(13, 3, 4) == LGTM(r=13, skip=3, window=4)
    assert Drop(13, "k") == Drop(r=13, cue="k")
    assert (ToMe(1).cue, DFE(1).cue, LGTM(1).cue) == ("k", "k", "k")
    assert all(kind(r=1).proportional for kind in ALL)


@pytest.mark.parametrize("r", [0, 13, [1, 2, 3], (13, -0.5), (4, 1)], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_every_form_of_r_goes_to_json_and_back(kind: type[Method], r: Any) -> None:
    assert from_json(json.loads(json.dumps(kind(r=r).to_json()))).r == r


@pytest.mark.parametrize("name", ready())
def test_a_name_and_options_are_a_method(name: str) -> None:
    a = vitfold.fold(vit(), name, r=3)
    b = vitfold.fold(vit(), METHODS[name](r=3))
    assert fold_of(a).method == fold_of(b).method
    assert torch.equal(a(images(a, dtype=torch.float32)), b(images(b, dtype=torch.float32)))


def test_names_are_found_in_any_case() -> None:
    assert fold_of(vitfold.fold(vit(), "LGTM", r=3)).method == LGTM(r=3)


# How many tokens leave.


@pytest.mark.parametrize(("depth", "skip"), [(4, 0), (6, 1), (11, 1), (12, 2), (24, 4)])
def test_the_dense_part_is_a_sixth_of_the_depth(depth: int, skip: int) -> None:
    assert DFE(r=1).first(depth) == LGTM(r=1).first(depth) == skip
    assert ToMe(r=1).first(depth) == Drop(r=1).first(depth) == 0
    assert all(kind(r=1, skip=3).first(depth) == 3 for kind in ALL)


def test_every_form_of_r_is_a_number_for_every_block() -> None:
    assert per_block(5, 4, 0) == (5, 5, 5, 5)
    assert per_block(5, 4, 2) == (0, 0, 5, 5)
    assert per_block([5, 0, 3], 4, 0) == (5, 0, 3, 0)
    assert per_block([], 4, 0) == (0, 0, 0, 0)
    assert per_block((5, -1), 4, 0) == (10, 6, 3, 0)
    assert per_block((5, 0.5), 4, 0) == (2, 4, 6, 8)
    assert per_block((5, 1), 1, 0) == (0,)
    assert per_block((13, -1), 12, 0) == (26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0)


@given(st.integers(0, 100), st.floats(-1, 1), st.integers(1, 48))
def test_ramps_run_along_a_line_to_their_end(r: int, inflection: float, depth: int) -> None:
    blocks = per_block((r, inflection), depth, 0)
    assert list(blocks) == ramp(r, inflection, depth)
    if depth > 1:
        assert blocks[-1] == 2 * r - blocks[0]


@given(st.floats(0, 100), st.integers(1, 48), st.integers(0, 48))
def test_even_schedules_are_whole_and_even(rate: float, depth: int, first: int) -> None:
    blocks = along(rate, 0.0, depth, first)
    assert len(blocks) == depth
    assert not any(blocks[:first])
    assert all(abs(r - rate) <= 1 for r in blocks[first:])
    assert abs(sum(blocks) - rate * max(depth - first, 0)) <= 1


@given(st.floats(0, 100), st.floats(-1, 1), st.integers(1, 48), st.integers(0, 48))
def test_ramps_of_a_share_are_whole_and_straight(
    rate: float, inflection: float, depth: int, first: int
) -> None:
    blocks = along(rate, inflection, depth, first)
    assert len(blocks) == depth
    assert not any(blocks[:first])
    run = max(depth - first - 1, 1)
    for place, r in enumerate(blocks[first:]):
        assert abs(r - rate * (1 - inflection + 2 * inflection * place / run)) <= 1 + 1e-6
    assert min(blocks, default=0) >= 0


def test_a_share_is_reached_along_a_ramp() -> None:
    falling = vitfold.fold(vit(depth=12), ToMe(flops=0.7, inflection=-1))
    rising = vitfold.fold(vit(depth=12), ToMe(flops=0.7, inflection=1))
    early, late = (fold_of(model).schedule for model in (falling, rising))
    assert early[0] > early[5] > early[11]
    assert late[0] < late[5] < late[11]
    assert sum(early) < sum(late)  # what leaves early costs nothing in all later blocks


def test_a_share_leaves_evenly_unless_a_ramp_is_given() -> None:
    early, usual, even = (
        fold_of(vitfold.fold(vit(depth=12), Ward(flops=0.7, **options))).schedule
        for options in ({"inflection": -0.5}, {}, {"inflection": 0.0})
    )
    assert usual == even
    assert early[0] > even[0] >= even[-1] > early[-1]
    assert fold_of(vitfold.fold(vit(depth=12), Ward(r=2))).schedule == (2,) * 12


@settings(max_examples=200)
@given(
    st.sampled_from(ALL),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from([0, 1, 5]),
    st.lists(st.integers(0, 500), min_size=1, max_size=24),
)
def test_plans_never_remove_more_than_half_or_a_prefix(
    kind: type[Method], grid: tuple[int, int], prefix: int, schedule: list[int]
) -> None:
    patches = grid[0] * grid[1]
    layout = Layout(patches + prefix, prefix, grid, len(schedule))
    for step in kind(r=0, skip=0).plan(layout, tuple(schedule)):
        if step:
            assert 0 < step.removes <= patches // 2
            patches -= step.removes
    assert patches >= 1


def test_plans_give_global_blocks_what_they_are_asked_for() -> None:
    for kind in (ToMe, Drop):
        steps = kind(r=0).plan(Layout(50, 1, (7, 7), 4), (5, 0, 40, 40))
        assert [step.removes if step else 0 for step in steps] == [5, 0, 22, 11]


# A share of the FLOPs.


def counted(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("kind", ALL)
def test_a_share_of_the_flops_is_reached(kind: type[Method], share: float) -> None:
    model = vit((10, 10), depth=4)
    x = images(model, batch=1, dtype=torch.float32)
    dense = counted(model, x)
    vitfold.fold(model, kind(flops=share))
    assert counted(model, x) / dense == pytest.approx(share, abs=NEAR)


@pytest.mark.parametrize("name", ["deit", "eva", "dino3"])
def test_a_share_is_reached_in_every_family(name: str) -> None:
    model = MODELS[name]((9, 8), depth=3)
    x = images(model, batch=3, dtype=torch.float32)
    dense = counted(model, x)
    vitfold.fold(model, ToMe(flops=0.7))
    assert counted(model, x) / dense == pytest.approx(0.7, abs=NEAR)


@pytest.mark.parametrize("kind", [ToMe, DFE, LGTM, Drop, Ward, EViT])
def test_schedules_are_the_same_whether_operations_are_done_or_worked_out(
    kind: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    def solved() -> tuple[int, ...]:
        return fold_of(vitfold.fold(vit((9, 9), depth=6), kind(flops=0.7))).schedule

    done, quick = solved(), counting.FEW
    monkeypatch.setattr(counting, "FEW", 0)
    assert quick > 0
    assert solved() == done


def test_shares_are_solved_without_running_the_model() -> None:
    model = vit((9, 9)).to("meta")
    vitfold.fold(model, ToMe(flops=0.7))
    assert sum(fold_of(model).schedule) > 0


def test_the_whole_share_is_the_dense_model() -> None:
    assert fold_of(vitfold.fold(vit(), ToMe(flops=1.0))).schedule == (0, 0, 0, 0)


def test_a_share_that_cannot_be_reached_is_refused_with_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"flops=0\.2 .* nearest share that can is 0\.\d+") as got:
        vitfold.fold(vit(), ToMe(flops=0.2))
    nearest = float(str(got.value).rsplit(" ", 1)[-1])
    model = vit()
    x = images(model, batch=1, dtype=torch.float32)
    dense = counted(model, x)
    vitfold.fold(model, ToMe(flops=nearest))
    assert counted(model, x) / dense == pytest.approx(nearest, abs=NEAR)


def test_a_dense_part_that_costs_more_than_the_share_is_refused() -> None:
    with pytest.raises(MethodError, match=r"from block 4 on: the nearest share that can is 1\.000"):
        vitfold.fold(vit(), ToMe(flops=0.5, skip=4))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.6])
def test_evit_reduces_in_a_few_blocks(share: float) -> None:
    model = vit(depth=12)
    x = images(model, 1, dtype=torch.float32)
    dense = vitfold.flops(model, x)
    vitfold.fold(model, EViT(flops=share))
    assert vitfold.flops(model, x) / dense == pytest.approx(share, abs=0.01)
    counts = [50, *(row[0] for row in vitfold.trace(model, x).counts)]
    assert [b for b in range(12) if counts[b + 1] < counts[b]] == [3, 6, 9]


# What is refused.

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "negative": (lambda: ToMe(r=-1), "r=-1: expected 0 or more"),
    "float": (lambda: ToMe(r=2.5), "r=2.5: expected an int, got float"),  # type: ignore[arg-type]
    "word": (lambda: LGTM(r="16"), "r='16': expected an int, got str"),  # type: ignore[arg-type]
    "bool": (lambda: DFE(r=True), "r=True: expected an int, got bool"),
    "in a list": (lambda: Drop(r=[1, -2]), r"r\[1\]=-2: expected 0 or more"),
    "not in a list": (lambda: Drop(r=[1, None]), r"r\[1\]=None: expected an int"),  # type: ignore[list-item]
    "three parts": (lambda: ToMe(r=(1, 2, 3)), r"r=\(1, 2, 3\): expected \(r, inflection\)"),  # type: ignore[arg-type]
    "negative ramp": (lambda: ToMe(r=(-1, 0.5)), "r=-1: expected 0 or more"),
    "steep ramp": (lambda: ToMe(r=(8, 1.5)), "inflection=1.5: expected a number from -1 to 1"),
    "odd ramp": (lambda: ToMe(r=(8, float("nan"))), "inflection=nan: expected a number"),
    "both": (lambda: ToMe(r=8, flops=0.5), "ToMe takes r or flops, got both: give one"),
    "neither": (lambda: LGTM(), "LGTM takes r or flops, got neither: give one"),
    "no share": (lambda: ToMe(flops=0), r"flops=0: expected a share .* \(0, 1\]"),
    "too much": (lambda: ToMe(flops=1.5), "flops=1.5: expected a share"),
    "odd share": (lambda: ToMe(flops=float("nan")), "flops=nan: expected a share"),
    "inflection": (
        lambda: ToMe(flops=0.5, inflection=2),
        "inflection=2: expected a number from -1 to 1",
    ),
    "inflection of r": (
        lambda: ToMe(r=8, inflection=0.5),
        r"inflection=0.5 goes with flops: with r, give \(r, inflection\)",
    ),
    "cue": (lambda: ToMe(r=8, cue="x_atn"), r"unknown cue 'x_atn' \(did you mean 'x_attn'\?\)"),
    "drop cue": (lambda: Drop(r=8, cue="keys"), "unknown cue 'keys' .*k, q, random, v, x, x_attn"),
    "switch": (
        lambda: ToMe(r=8, proportional=1),  # type: ignore[arg-type]
        "proportional=1: expected True or False",
    ),
    "seed": (lambda: ToMe(r=8, seed=-1), "seed=-1: expected 0 or more"),
    "skip": (lambda: ToMe(r=8, skip=-1), "skip=-1: expected 0 or more"),
    "skip word": (lambda: DFE(r=8, skip="two"), "skip='two': expected an int"),  # type: ignore[arg-type]
    "window": (lambda: LGTM(r=8, window=1), "window=1: expected 2 or more"),
    "location": (lambda: LGTM(r=8, location="3d"), "location='3d': expected 1d or 2d"),
    "long": (
        lambda: vitfold.fold(vit(), ToMe(r=[1] * 5)),
        "r has 5 numbers, the model 4 blocks: give at most 4",
    ),
    "late": (lambda: vitfold.fold(vit(), ToMe(r=8, skip=5)), "skip=5 is more than the 4 blocks"),
    "name": (lambda: vitfold.fold(vit(), "tomee", r=8), r"'tomee' \(did you mean 'tome'\?\)"),
    "far name": (
        lambda: vitfold.fold(vit(), "xyz", r=8),
        f"'xyz' .*{', '.join(sorted(vitfold.METHODS))}",
    ),
    "no class token": (
        lambda: vitfold.fold(vit(class_token=False, global_pool="avg"), EViT(r=3)),
        "class token: the model has none",
    ),
    "deep": (lambda: vitfold.fold(vit(), EViT(r=3, blocks=(1, 4))), "the model has 4 blocks"),
    "block": (lambda: EViT(r=3, blocks=(-1,)), r"blocks\[0\]=-1: expected 0 or more"),
    "blocks": (lambda: EViT(r=3, blocks=4), "blocks=4: expected a list"),  # type: ignore[arg-type]
    "fuse": (lambda: EViT(r=3, fuse=1), "fuse=1: expected True"),  # type: ignore[arg-type]
    "option": (
        lambda: vitfold.fold(vit(), "lgtm", r=8, windows=4),
        r"LGTM has no option 'windows' \(did you mean 'window'\?\)",
    ),
    "options twice": (lambda: vitfold.fold(vit(), ToMe(r=8), skip=1), r"skip go into ToMe\(...\)"),
    "class": (lambda: vitfold.fold(vit(), ToMe), "give one, such as"),  # type: ignore[arg-type]
    "nothing": (lambda: vitfold.fold(vit(), None), "None is not a method"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_in_one_line(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(MethodError, match=message) as got:
        call()
    assert isinstance(got.value, VitfoldError | ValueError)
    assert "\n" not in str(got.value)


@pytest.mark.parametrize("r", [25, 3000, [1, 30], (25, 0.5)], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_more_than_half_is_refused(kind: type[Method], r: Any) -> None:
    with pytest.raises(MethodError, match="of 49 patch tokens at most 24 can leave a block"):
        vitfold.fold(vit(), kind(r=r))


@pytest.mark.parametrize("kind", ALL)
def test_a_ramp_is_cut_where_more_than_half_would_leave_and_it_is_told(kind: type[Method]) -> None:
    with pytest.warns(UserWarning, match=r"goes up to 40; of 49 .* at most 24 can leave") as report:
        model = vitfold.fold(vit(), kind(r=(20, -1), skip=0))
    assert Path(report[0].filename) == Path(__file__)
    assert max(fold_of(model).schedule) == 24
    assert vitfold.trace(model, images(model, dtype=torch.float32)).counts[-1][0] >= 2


@pytest.mark.parametrize("kind", ALL)
def test_later_blocks_lose_what_they_have(kind: type[Method]) -> None:
    model = vitfold.fold(vit(), kind(r=24, skip=0))
    counts = vitfold.trace(model, images(model, dtype=torch.float32)).counts
    assert counts[-1][0] >= 2


def test_numbers_of_other_libraries_are_numbers() -> None:
    for r in (np.int64(5), torch.tensor(5)):
        assert (ToMe(r=r), ToMe(r=[r, r]), ToMe(r=(r, 0.5))) == (  # type: ignore[arg-type, list-item]
            ToMe(r=5), ToMe(r=[5, 5]), ToMe(r=(5, 0.5)),
        )  # fmt: skip
    assert hash(ToMe(r=[1, 2])) == hash(ToMe(r=[1, 2]))


def test_a_name_stands_for_one_method() -> None:
    for name, says in (("tome", "'tome' is a ToMe already"), ("Tail", "small letters"), ("", "''")):
        with pytest.raises(MethodError, match=says):
            vitfold.register(name)(type("Other", (Drop,), {}))
    assert vitfold.METHODS["tome"] is ToMe
    assert vitfold.register("tome")(ToMe) is ToMe  # a cell of a notebook that is run again


@pytest.mark.parametrize("method", [ToMe(r=[1] * 9), ToMe(flops=0.1), ToMe(r=3, skip=9)], ids=str)
def test_a_refused_fold_leaves_everything_as_it_was(method: Method) -> None:
    dense, before = vit(), vitfold.fold(vit(), LGTM(r=5))
    x = images(dense, dtype=torch.float32)
    logits = dense(x), before(x)
    for model in (dense, before):
        with pytest.raises(MethodError):
            vitfold.fold(model, method)
    assert torch.equal(dense(x), logits[0])
    assert torch.equal(before(x), logits[1])
    assert fold_of(before).method == LGTM(r=5)


@pytest.mark.parametrize(
    "change", [lambda model: vitfold.fold(model, ToMe(r=3)), vitfold.unfold], ids=["fold", "unfold"]
)
def test_a_model_is_not_changed_while_it_runs(change: Callable[[nn.Module], nn.Module]) -> None:
    model: Any = vitfold.fold(vit(), ToMe(r=8))
    x = images(model, dtype=torch.float32)
    before = model(x)
    handle = model.blocks[2].mlp.register_forward_hook(lambda *_: change(model) and None)
    with pytest.raises(FoldError, match="a forward of this model is running") as got:
        model(x)
    assert "\n" not in str(got.value)
    handle.remove()
    assert torch.equal(model(x), before)
    change(model)
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize("kind", [vitfold.EViT, vitfold.DynamicViT])
def test_a_stage_may_lose_more_than_half(kind: Any, tmp_path: Path) -> None:
    """Nothing needs a partner there."""
    model = vitfold.fold(vit(), kind(r=[0, 40, 0, 0], blocks=(1,)))
    x = images(model, 2, dtype=torch.float32)
    expected = model(x)
    assert vitfold.trace(model, x).counts[-1] == [10, 10]
    vitfold.save(model, tmp_path / "plan", backbone=True)
    again = vitfold.load(tmp_path / "plan", vit())
    assert torch.equal(again(x), expected)
    with pytest.raises(MethodError, match="r=48: of 49 patch tokens at most 47 can leave a block"):
        vitfold.fold(vit(), kind(r=48))


def test_numbers_may_come_from_numpy_and_torch() -> None:
    assert ToMe(r=np.array([3, 2, 1])) == ToMe(r=[3, 2, 1])
    assert ToMe(r=(np.int64(3), np.float32(-1))) == ToMe(r=(3, -1.0))
    new = ToMe(flops=np.float64(0.5), skip=np.int64(1), proportional=np.bool_(True))
    assert new == ToMe(flops=0.5, skip=1)
    assert type(new.skip) is int
    assert LTMP(merge_threshold=torch.tensor(0.5)) == LTMP(merge_threshold=0.5)
    assert PruneMerge(np.float64(0.5)).keep == 0.5


def test_a_plan_that_leaves_no_patch_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class All(Method):
        def plan(self, layout: Any, schedule: tuple[int, ...]) -> Any:
            return tuple(Step("k", r, lambda metric, state: None) for r in schedule)

    model = vitfold.fold(vit(), All(r=24))
    with pytest.raises(MethodError, match="All removes 24 of 1 patches in block 2"):
        model(images(model, dtype=torch.float32))


def test_what_a_search_takes_is_named() -> None:
    with pytest.raises(MethodError, match=r"'flops': give it to PruneMerge.search\("):
        vitfold.fold(vit(), "prune-merge", flops=0.6)
