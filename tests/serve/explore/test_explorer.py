"""What the page computes: right, once, and for whatever model and method."""

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support import small
from support.uploads import scene
from torch import nn

import vitfold
from vitfold.errors import DataError, MethodError
from vitfold.exporting.runtime import installed
from vitfold.folding.fold import clone, fold
from vitfold.serve.explore import explorer as module
from vitfold.serve.explore.cache import Cache
from vitfold.serve.explore.explorer import OWN, Explorer, Photograph, Pick
from vitfold.serve.explore.labels import class_names
from vitfold.serve.explore.lines import Origin
from vitfold.serve.explore.speeds import Stopwatch, rounds
from vitfold.serve.explore.views import EMPTY, NOTHING, Asked, Views
from vitfold.tools.fidelity import fidelity

HALF = Pick("tome", 0.6)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(small.vit().float())


@pytest.fixture(scope="module")
def photograph(explorer: Explorer) -> Photograph:
    return explorer.photograph(scene(), "a scene")


def test_a_sight_is_what_trace_and_fidelity_say(explorer: Explorer, photograph) -> None:
    batch = explorer._batch(photograph)
    model = fold(clone(explorer.dense), "tome", flops=0.6)
    sight = explorer.sight(photograph, HALF)
    trace = vitfold.trace(model, batch)
    assert sight.trace.counts == trace.counts
    assert (sight.first, sight.tokens(3)) == (50, trace.counts[3][0])
    report = fidelity(model, batch)
    assert report.cosine is not None
    assert report.kl is not None
    assert sight.figures["cosine"] == pytest.approx(report.cosine.mean, abs=1e-6)
    assert sight.figures["kl"] == pytest.approx(report.kl.mean, abs=1e-6)


def test_pictures_are_those_of_trace(explorer: Explorer, photograph) -> None:
    model = fold(clone(explorer.dense), "tome", flops=0.6)
    trace = vitfold.trace(model, explorer._batch(photograph))
    for block in range(explorer.depth):
        ours = explorer.picture(photograph, HALF, block)
        theirs = trace.draw(photograph.pixels.float() / 255, block=block)
        assert ours.tobytes() == theirs.tobytes()


def test_what_does_not_change_is_not_computed_again(photograph, monkeypatch) -> None:
    explorer = Explorer(small.vit().float())
    calls: list[str] = []

    def noted(name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: [calls.append(name), real(*a, **k)][1])

    for name in "look", "fold", "flops_by_block":
        noted(name)
    views = Views(explorer, Origin("m"))

    def computed(*asked: object) -> list[str]:
        calls.clear()
        chosen = Asked(photograph, *asked)  # type: ignore[arg-type]
        assert views.pictures(chosen) + views.answers(chosen) + views.costs(chosen)
        return sorted(calls)

    first = ["flops_by_block", "flops_by_block", "fold", "fold", "look", "look"]
    assert computed("tome", 0.6) == first  # the dense model too, and what it costs
    assert computed("tome", 0.6) == []
    assert computed("tome", 0.6, NOTHING, 2) == []  # another block
    assert computed("tome", 0.6, NOTHING, 2, "onnxruntime", 8) == []
    assert computed("tome", 0.7) == ["flops_by_block", "fold", "look"]
    assert computed("tome", 0.7, "drop") == ["flops_by_block", "fold", "look"]
    other = explorer.photograph(scene(seed=5), "another")
    calls.clear()
    assert views.answers(Asked(other, "tome", 0.6))
    assert calls == ["look", "look"]


def test_nothing_of_a_photograph_outlives_it() -> None:
    explorer = Explorer(small.vit().float())
    photograph = explorer.photograph(scene(), "a scene")
    explorer.picture(photograph, HALF, 1)
    explorer.costs(photograph, HALF)
    left = [weakref.ref(explorer.sight(photograph, HALF)), weakref.ref(explorer.seen(photograph))]
    left += [weakref.ref(explorer.picture(photograph, HALF, 1)), weakref.ref(photograph)]
    gc.collect()
    assert None not in [reference() for reference in left]
    del photograph
    gc.collect()
    assert [reference() for reference in left] == [None] * 4


def test_what_is_kept_of_one_photograph_has_an_end(monkeypatch) -> None:
    monkeypatch.setattr(module, "PHOTOGRAPHS", 2)
    explorer = Explorer(small.vit().float())
    photographs = [explorer.photograph(scene(seed=seed), "a scene") for seed in range(3)]
    first = weakref.ref(explorer.seen(photographs[0]))
    for photograph in photographs[1:]:
        explorer.seen(photograph)
    gc.collect()
    assert first() is None


def test_costs_by_block_are_those_of_the_whole(explorer: Explorer, photograph) -> None:
    costs = explorer.costs(photograph, HALF)
    model, batch = explorer.folded(HALF), explorer._batch(photograph)
    whole = vitfold.flops(model, batch) / vitfold.flops(explorer.dense, batch)
    assert costs.share == pytest.approx(whole)
    assert costs.share == pytest.approx(0.6, abs=0.02)
    assert len(costs.dense) == len(costs.folded) == explorer.depth


@pytest.mark.parametrize("method", vitfold.METHODS)
def test_every_method_that_is_offered_has_a_picture(
    explorer: Explorer, photograph, method: str
) -> None:
    if method not in explorer.methods:
        with pytest.raises(MethodError):
            fold(clone(explorer.dense), "ward", flops=2.0)
        return
    picture = explorer.picture(photograph, Pick(method, 0.8), explorer.depth - 1)
    assert isinstance(picture, Image.Image)


def test_a_model_that_came_folded_keeps_its_fold(photograph) -> None:
    explorer = Explorer(fold(small.vit().float(), "ward", r=9))
    assert explorer.methods[0] == OWN
    own = explorer.sight(photograph, Pick(OWN, 1.0))
    assert own.trace.counts == [[41], [32], [23], [14]]
    assert explorer.seen(photograph).logits is not None
    assert explorer.sight(photograph, HALF).trace.counts != own.trace.counts
    [pick] = Asked(photograph, OWN, 0.4).picks
    assert pick == Pick(OWN, 1.0)


def test_a_fold_whose_counts_depend_on_the_image_is_counted_for_each() -> None:
    explorer = Explorer(fold(small.vit().float(), "avit"))
    own = Pick(OWN, 1.0)
    photographs = [explorer.photograph(scene(seed=seed), "a scene") for seed in range(6)]
    counts = {str(explorer.sight(photograph, own).trace.counts) for photograph in photographs}
    shares = {explorer.costs(photograph, own).share for photograph in photographs}
    assert len(counts) > 1
    assert len(shares) > 1
    assert explorer.picture(photographs[0], own, 1).size == (224, 224)


def test_a_budget_that_cannot_be_reached_is_told_beside_what_can(
    explorer: Explorer, photograph, monkeypatch
) -> None:
    views = Views(explorer, Origin("m"))
    asked = Asked(photograph, "lgtm", 0.42, "drop")
    shown = views.pictures(asked)
    assert "flops=0.42 cannot be reached" in shown
    assert "drop at 0.42" in shown
    assert "drop at 0.42" in views.answers(asked)
    assert "lgtm at 0.42" not in views.answers(asked)
    monkeypatch.setattr(module, "fold", lambda *_: 1 / 0)  # nobody tries again
    alone = Asked(photograph, "lgtm", 0.42)
    assert views.costs(alone) == ""
    assert "dense" in views.answers(alone)


def test_without_classes_embeddings_are_compared(photograph) -> None:
    explorer = Explorer(small.vit(num_classes=0).float())
    shown = Views(explorer, Origin("m")).answers(Asked(photograph, "tome", 0.6))
    assert "cosine of embeddings" in shown
    assert "<ol>" not in shown
    assert "same class" not in shown


def test_without_a_photograph_the_page_says_what_to_do(explorer: Explorer) -> None:
    views, asked = Views(explorer, Origin("m")), Asked(None, "tome", 0.6)
    assert EMPTY in views.pictures(asked)
    assert views.answers(asked) == views.costs(asked) == ""


def test_names_are_shown_as_text(explorer: Explorer) -> None:
    photograph = explorer.photograph(scene(), '<b>"x"')
    shown = Views(explorer, Origin("m")).pictures(Asked(photograph, "tome", 0.6))
    assert "<b>" not in shown
    assert "&lt;b&gt;&quot;x&quot;" in shown


def test_a_picture_too_long_and_thin_is_refused(explorer: Explorer) -> None:
    with pytest.raises(DataError, match="too long and thin"):
        explorer.photograph(Image.new("RGB", (200_000, 1)), "line.png")


def test_models_without_a_plane_of_patches_are_refused() -> None:
    import timm

    model = timm.create_model("naflexvit_base_patch16_gap", embed_dim=64, num_heads=4, depth=2)
    model.eval()
    if len(vitfold.folding.families.find(model).layout().grid or ()) == 2:
        assert Explorer(model).depth == 2
    with pytest.raises(vitfold.UnsupportedModel):
        Explorer(nn.Linear(2, 2))


def test_classes_have_the_names_that_are_known() -> None:
    class Model(nn.Module):
        num_classes = 1000
        pretrained_cfg = {"architecture": "deit_tiny_patch16_224"}  # noqa: RUF012

    assert class_names(Model())[:2] == ["tench", "goldfish"]
    model = small.vit()
    assert class_names(model)[:2] == ["class 0", "class 1"]
    model.__dict__["config"] = SimpleNamespace(id2label={n: f"kind {n}" for n in range(7)})
    assert class_names(model)[6] == "kind 6"
    assert class_names(small.vit(num_classes=0)) == []


def test_speeds_are_measured_once(explorer: Explorer) -> None:
    stopwatch, steps = Stopwatch(explorer), []
    picks = [HALF, Pick("drop", 0.6)]
    assert stopwatch.known(picks, "eager", 2) is None
    rows = stopwatch.measure(picks, "eager", 2, lambda: steps.append(1))
    assert [row.name for row in rows] == ["dense", "tome at 0.6", "drop at 0.6"]
    assert rows[0].speedup == 1
    assert all(0 < row.low <= row.milliseconds <= row.high for row in rows)
    assert len(steps) == rounds(picks)
    assert stopwatch.measure(picks, "eager", 2, lambda: 1 / 0) is rows  # type: ignore[arg-type]
    assert stopwatch.known(picks, "eager", 2) is rows
    with pytest.raises(DataError, match="a batch of 99: expected 1 to 32 images"):
        stopwatch.measure(picks, "eager", 99)


def test_runtimes_are_those_that_are_here() -> None:
    assert installed(torch.device("cpu"))[0] == "eager"
    assert set(installed(torch.device("cuda"))) <= {"eager", "compile", "aoti"}
    assert installed(torch.device("cuda"), ("openvino", "nowhere", "eager")) == ["eager"]


def test_what_a_runtime_refuses_is_told(explorer: Explorer, photograph, monkeypatch) -> None:
    views = Views(explorer, Origin("m"))
    asked = Asked(photograph, "tome", 0.6, runtime="nowhere")
    assert "unknown runtime" in views.measured(asked)
    assert "Not measured yet" in views.speeds(asked)


def test_a_cache_keeps_what_was_used_last() -> None:
    cache: Cache[str, int] = Cache(2)
    made: list[str] = []

    def get(key: str) -> int:
        return cache.get(key, lambda: [made.append(key), len(made)][1])

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    with pytest.raises(ZeroDivisionError):
        cache.get("d", lambda: 1 // 0)
    assert cache.peek("d") is None
    cache.drop("b")
    assert cache.peek("b") is None


def test_what_is_kept_can_be_had_while_something_is_made() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.get("a", lambda: 1)
    begun, go, made = threading.Event(), threading.Event(), []

    def make() -> int:
        begun.set()
        assert go.wait(60)
        made.append(2)
        return 2

    threads = [threading.Thread(target=cache.get, args=("b", make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    assert cache.get("a", lambda: 1 // 0) == cache.peek("a") == 1
    go.set()
    for thread in threads:
        thread.join()
    assert made == [2]
