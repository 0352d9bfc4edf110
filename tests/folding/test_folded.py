"""What is seen of a fold: `folded`, `print`, warnings, and what is refused because it does
nothing."""

import copy
import warnings

import pytest
import torch
from support.models import images, registered

import vitfold
from vitfold.errors import FoldError, MethodError
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import fold_to_learn


def vit(depth: int = 3) -> torch.nn.Module:
    return registered("vit_tiny_patch16_224", depth=depth)  # type: ignore[no-any-return]


def test_how_a_model_is_folded_is_told() -> None:
    model = vit()
    assert vitfold.folded(model) is None
    vitfold.fold(model, vitfold.ToMe(r=4))
    assert vitfold.folded(model) == vitfold.Folded(vitfold.ToMe(r=4), (4, 4, 4))
    assert vitfold.folded(torch.nn.Sequential(model)) == vitfold.folded(copy.deepcopy(model))
    assert repr(vitfold.folded(model)) == "Folded(method=ToMe(r=4), schedule=(4, 4, 4))"
    assert vitfold.folded(vitfold.unfold(model)) is None


def test_a_fold_is_seen_where_a_model_is_printed() -> None:
    model = vit()
    dense, attributes = repr(model), set(vars(model))
    vitfold.fold(model, vitfold.ToMe(r=4))
    lines = repr(model).splitlines()
    assert lines[1].strip() == "(vitfold): Folded(method=ToMe(r=4), schedule=(4, 4, 4))"
    assert repr(copy.deepcopy(model)) == repr(model)
    assert repr(vitfold.unfold(model)) == dense
    assert set(vars(model)) == attributes


@pytest.mark.parametrize("method", [vitfold.EViT, vitfold.DynamicViT])
def test_numbers_in_other_blocks_are_refused(method: type[vitfold.Method]) -> None:
    model = vit(depth=12)
    with pytest.raises(MethodError, match=r"of blocks 2, 4 nothing would leave, .* 3, 6, 9"):
        vitfold.fold(model, method(r=[0, 0, 5, 0, 5]))
    with pytest.raises(MethodError, match=r"of blocks 4 nothing would leave"):
        vitfold.fold(model, method(r=[0, 0, 0, 5, 5]))
    assert vitfold.folded(model) is None
    vitfold.fold(model, method(r=[0, 0, 0, 5, 0, 0, 5]))
    vitfold.fold(model, method(r=5))


@pytest.mark.parametrize("name", ["tome", "dfe", "lgtm", "drop", "ward"])
def test_a_request_that_removes_nothing_is_refused(name: str) -> None:
    model = vit()
    options = {"skip": 3} if name in ("tome", "dfe", "lgtm") else {}
    if options:
        with pytest.raises(
            MethodError, match=r"removes nothing: .* blocks 0, 1, 2, and it reduces"
        ):
            vitfold.fold(model, name, r=4, **options)
        assert vitfold.folded(model) is None
    vitfold.fold(model, name, r=0)
    vitfold.fold(model, name, r=4)


@pytest.mark.parametrize(
    ("method", "command"),
    [
        (vitfold.LTMP(flops=0.6), "vitfold train MODEL --method ltmp --flops 0.6"),
        (vitfold.AViT(flops=0.6), "vitfold train MODEL --method avit --flops 0.6"),
        (vitfold.WardCut(flops=0.6), "vitfold calibrate MODEL --method wardcut --flops 0.6"),
    ],
    ids=str,
)
def test_a_share_that_has_to_be_learned_is_no_promise(method: vitfold.Method, command: str) -> None:
    with pytest.warns(UserWarning, match=command) as report:
        vitfold.fold(vit(), method)
    assert len(report) == 1
    assert "\n" not in str(report[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold_to_learn(vit(), method)
        vitfold.fold(vit(), vitfold.ToMe(flops=0.8))
        vitfold.fold(vit(), vitfold.LTMP())


def test_scripting_is_refused_in_words() -> None:
    model = vitfold.fold(vit(), vitfold.ToMe(r=4))
    with pytest.raises(
        FoldError, match=r"torch\.jit\.script cannot compile a folded VisionTransfo"
    ):
        torch.jit.script(model)
    assert torch.jit.trace(model, images(model)) is not None


def test_one_graph_for_many_lengths_is_refused_in_words() -> None:
    model = vitfold.fold(vit(), vitfold.LTMP(merge_threshold=0.3))
    x = images(model)
    with pytest.raises(Exception, match="LTMP keeps another number") as refusal:
        torch.compile(model, backend="eager", fullgraph=True)(x)
    assert "vitfold.freeze(model, images)" in str(refusal.value).splitlines()[0]
    assert len(str(refusal.value)) < 2000
    assert fold_of(model).form == "packed"
