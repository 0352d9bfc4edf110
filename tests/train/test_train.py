"""Training: what decides the result, what survives a stop, and the command."""

import csv
import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from support.cli import pictures, vitfold_
from support.training import Blobs
from timm.data import IterableImageDataset
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitfold
from vitfold.cli import subject
from vitfold.data import Renormalized, Source
from vitfold.data import digits as digits_
from vitfold.data.digits import load_split
from vitfold.errors import DataError, MethodError, PlanError, TrainError
from vitfold.saving.models import create_model, save_model
from vitfold.tools import results
from vitfold.train import Distillation, Recipe, checkpoint, train
from vitfold.train import loop as loop_
from vitfold.train.examples import Examples, Order, load, own_randomness, seed_all
from vitfold.train.log import Log
from vitfold.train.objective import Objective, distillation
from vitfold.train.optimizing import PlainStep, SharpnessAwareStep
from vitfold.train.outline import Outcome, Settings, check_share, create_accelerator


def digits_model() -> nn.Module:
    return create_model("digits", pretrained=True)


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=2,
        num_classes=3, **options,
    )  # fmt: skip
    return made


RECIPE = Recipe(epochs=3, batch_size=4, accumulate=2, clip=1.0, smoothing=0.1)


def run(
    output: Path, recipe: Recipe = RECIPE, model: nn.Module | None = None, **options: Any
) -> dict[str, Tensor]:
    """The weights after a training on the CPU."""
    model = model or small(drop_path_rate=0.2, proj_drop_rate=0.1)
    given = {"every": 2, "resume": True} | options
    precision, calibration = given.pop("precision", "no"), given.pop("calibration", None)
    accelerator = create_accelerator("cpu", precision)
    train(
        model, recipe, Blobs(), Blobs(6), settings=Settings(output, **given),
        accelerator=accelerator, classes=3, calibration=calibration,
    )  # fmt: skip
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What decides the result


@settings(deadline=None)
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
    seen = [place for order in shares for b in order.batches(0, steps) for place in b]
    assert len(set(seen)) == len(seen) == steps * batch * accumulate * len(shares)
    assert {epoch for epoch, _ in seen} == {0}
    later = [place[1] for order in shares for b in order.batches(steps, 2 * steps) for place in b]
    assert len(set(later)) == len(later)


@settings(deadline=None)
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


def test_what_comes_out_depends_on_the_recipe_alone(tmp_path: Path) -> None:
    plain = run(tmp_path / "a")
    torch.rand(7)
    assert same(plain, run(tmp_path / "b", workers=2, every=0, log_every=1))
    other = run(tmp_path / "c", Recipe(**{**vars(RECIPE), "seed": 1}))
    assert not same(plain, other)


def test_batches_that_make_up_a_step_are_one_batch(tmp_path: Path) -> None:
    one = Recipe(epochs=2, batch_size=8, optimizer={"opt": "sgd", "lr": 0.1, "momentum": 0.9})
    two = Recipe(**{**vars(one), "batch_size": 4, "accumulate": 2})
    for sam in (None, 0.05):
        whole, parts = (
            run(tmp_path / f"{sam}{r.accumulate}", Recipe(**{**vars(r), "sam": sam}), small())
            for r in (one, two)
        )
        for name in whole:
            torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


# Steps


def quadratic() -> tuple[nn.Linear, Callable[[], Tensor]]:
    torch.manual_seed(1)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(8, 4).double(), torch.randn(8, 3).double()

    def backward() -> Tensor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss.detach()

    return model, backward


def test_a_sharpness_aware_step_is_the_gradient_uphill_taken_from_here() -> None:
    model, backward = quadratic()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = backward()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters()}
    length = torch.sqrt(sum((g**2).sum() for g in slopes.values()))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.05 * slopes[name] / length)
    model.zero_grad()
    backward()
    expected = {name: start[name] - 0.1 * p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    model.zero_grad()
    step = SharpnessAwareStep(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    assert step(backward, lambda: None) == first
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-6, atol=1e-9)


def test_a_radius_of_almost_nothing_is_a_plain_step() -> None:
    ends = []
    for make in (PlainStep, lambda o: SharpnessAwareStep(o, rho=1e-12)):
        model, backward = quadratic()
        step = make(torch.optim.AdamW(model.parameters(), lr=0.1))
        for _ in range(3):
            step(backward, lambda: None)
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-9)


def test_an_overflow_in_the_first_gradient_leaves_the_weights_alone() -> None:
    model, backward = quadratic()
    before = model.weight.detach().clone()

    class Scaled(torch.optim.SGD):
        """Leaves out steps that are not finite, as a scaler does."""

        def step(self) -> None:  # type: ignore[override]
            if all(p.grad.isfinite().all() for g in self.param_groups for p in g["params"]):
                super().step()

    def overflow() -> Tensor:
        loss = backward()
        model.weight.grad[0, 0] = float("inf")
        return loss

    SharpnessAwareStep(Scaled(model.parameters(), lr=0.1), rho=0.05)(overflow, lambda: None)
    assert torch.equal(model.weight, before)


# What is learned


def test_soft_distillation_is_the_divergence_at_a_temperature() -> None:
    student, teacher = torch.randn(2, 5, 7).double().unbind()
    t = 4.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    expected = (p * (p.log() - q.log())).sum() * t**2 / student.numel()
    found = distillation(Distillation("soft", temperature=t), student, teacher)
    torch.testing.assert_close(found, expected)
    assert float(distillation(Distillation("soft"), student, student)) == pytest.approx(0, abs=1e-9)


def test_hard_distillation_learns_the_best_class() -> None:
    student, teacher = torch.randn(2, 5, 7).unbind()
    expected = F.cross_entropy(student, teacher.argmax(1))
    assert torch.equal(distillation(Distillation("hard"), student, teacher), expected)


def test_the_teacher_is_the_dense_model_and_stays_as_it_is(tmp_path: Path) -> None:
    model = vitfold.fold(small(), "tome", r=4)
    dense = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    seen: list[nn.Module] = []
    original = Objective.__init__

    def spy(self: Objective, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        seen.extend(self.teachers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "__init__", spy)
        run(tmp_path, Recipe(**{**vars(RECIPE), "distill": Distillation()}), model)
    [teacher] = seen
    assert "_vitfold" not in vars(teacher)
    assert same(teacher.state_dict(), dense)
    assert not any(name.startswith("teacher") for name in model.state_dict())


def test_a_model_learns(tmp_path: Path) -> None:
    model = small()
    outcome = train(
        model, Recipe(epochs=25, batch_size=8, optimizer={"opt": "adamw", "lr": 3e-3}), Blobs(48),
        Blobs(24), settings=Settings(tmp_path), accelerator=create_accelerator("cpu"),
    )  # fmt: skip
    assert outcome.best is not None
    assert outcome.best > 0.5  # of three classes
    assert outcome.epochs[-1]["loss"] < 0.9 * outcome.epochs[0]["loss"]


def test_mixed_images_are_mixed_anew_in_no_second_pass(tmp_path: Path) -> None:
    mixed = Recipe(**{**vars(RECIPE), "mix": {"mixup_alpha": 0.8}, "sam": 1e-12})
    plain = Recipe(**{**vars(mixed), "sam": None})
    a, b = run(tmp_path / "a", mixed), run(tmp_path / "b", plain)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


# Checkpoints

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NAMES = st.text(max_size=5) | st.integers(0, 9)
TREES = st.recursive(
    LEAVES | st.lists(st.integers(0, 9), max_size=3).map(lambda s: torch.tensor(s)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=60)
@given(tree=TREES)
def test_a_checkpoint_gives_back_what_it_was_given(
    tree: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("checkpoint")
    assert checkpoint.write(place, 3, {"all": tree}, keep=1)
    step, again = checkpoint.read(place) or (0, None)
    assert step == 3
    assert alike(again["all"], tree)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 300, 4000):
        assert checkpoint.write(tmp_path, step, {"step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000300", "step-000004000"]


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.TREE])
@pytest.mark.parametrize("spoil", ["truncate", "change", "remove"])
def test_a_broken_one_is_passed_by(tmp_path: Path, file: str, spoil: str) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, step, {"w": torch.arange(9.0) + step}, keep=3)
    path = tmp_path / "step-000000002" / file
    data = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if spoil == "truncate" else b"\x80" + data[1:])
    with pytest.warns(UserWarning, match="step-000000002 is passed by"):
        step, state = checkpoint.read(tmp_path) or (0, None)
    assert step == 1
    assert torch.equal(state["w"], torch.arange(9.0) + 1)


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, 1, {"w": torch.ones(3)}, keep=1)

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.warns(UserWarning, match="no checkpoint at step 2: .*No space left"):
        assert not checkpoint.write(tmp_path, 2, {"w": torch.ones(3)}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def test_a_training_goes_on_over_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_too(*_: Any) -> None:
        raise DataError("it cannot be written: No space left on device")

    expected = run(tmp_path / "a")
    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(results, "write", full_too)
    with pytest.warns(UserWarning, match="No space left"):
        assert same(run(tmp_path / "b"), expected)
    monkeypatch.setattr(loop_, "save_model", full_too)
    with pytest.warns(UserWarning, match="best is not written"), pytest.raises(DataError):
        run(tmp_path / "c")


def test_what_no_checkpoint_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="a/b: a checkpoint cannot hold a set"):
        checkpoint.write(tmp_path, 1, {"a": {"b": {1}}}, keep=1)


# Killed and resumed


def child(task: Callable[[], object]) -> int:
    """The exit code of a process that does the task; negative: the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=task)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def killed_after(step: int, *arguments: Any, **options: Any) -> Callable[[], None]:
    def task() -> None:
        original = loop_.Training._after

        def after(self: Any, now: int, *args: Any, **kwargs: Any) -> None:
            original(self, now, *args, **kwargs)
            if now == step:
                os.kill(os.getpid(), signal.SIGKILL)

        loop_.Training._after = after  # type: ignore[method-assign]
        run(*arguments, **options)

    return task


def killed_in_checkpoint(number: int, where: str, *arguments: Any) -> Callable[[], None]:
    """Killed in the middle of writing the checkpoint of that number."""

    def task() -> None:
        left = [number]

        def die(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if where == "save_file":
                    Path(args[1]).write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        original = getattr(checkpoint, where)
        setattr(checkpoint, where, die)
        run(*arguments)

    return task


STEPS = 9


def test_killed_at_any_step_it_ends_the_same(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    dice = random.Random(3)
    for trial in range(20):
        output, step = tmp_path / str(trial), dice.randint(1, STEPS)
        assert child(killed_after(step, output)) == -signal.SIGKILL
        if trial % 3 == 0:  # a second time
            later = dice.randint(1, STEPS)
            child(killed_after(later, output))
        assert same(run(output), expected), f"killed after step {step}"
        with (output / "log.csv").open() as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


@pytest.mark.parametrize("where", ["save_file", "_digest", "_to_disk", "_clear"])
def test_killed_while_writing_a_checkpoint_it_ends_the_same(tmp_path: Path, where: str) -> None:
    expected = run(tmp_path / "whole")
    for number in (1, 4):
        output = tmp_path / str(number)
        assert child(killed_in_checkpoint(number, where, output)) == -signal.SIGKILL
        assert same(run(output), expected)
        assert not list((output / "checkpoints").glob(".*"))


VARIANTS: dict[str, dict[str, Any]] = {
    "sam": {"sam": 0.05},
    "distilled": {"distill": Distillation("soft", 0.5, 2.0)},
    "mixed": {"mix": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}},
    "warm": {"schedule": {"sched": "cosine", "warmup_epochs": 1, "warmup_lr": 1e-5}},
    "sgd": {"optimizer": {"opt": "sgd", "lr": 0.01, "momentum": 0.9}},
    "lion": {"optimizer": {"opt": "lion", "lr": 1e-4}},
    "still": {"schedule": {"sched": "none"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_training_goes_on_as_it_was(tmp_path: Path, name: str) -> None:
    recipe = Recipe(**{**vars(RECIPE), **VARIANTS[name]})
    expected = run(tmp_path / "whole", recipe)
    assert child(killed_after(5, tmp_path / "cut", recipe)) == -signal.SIGKILL
    assert same(run(tmp_path / "cut", recipe), expected)


def test_a_folded_model_in_low_precision_goes_on_as_it_was(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return vitfold.fold(small(), "tome", r=4)

    expected = run(tmp_path / "whole", RECIPE, model(), precision="bf16")
    assert not same(expected, run(tmp_path / "dense", RECIPE, small(), precision="bf16"))
    dies = killed_after(5, tmp_path / "cut", RECIPE, model(), precision="bf16")
    assert child(dies) == -signal.SIGKILL
    assert same(run(tmp_path / "cut", RECIPE, model(), precision="bf16"), expected)


def test_a_signal_ends_it_after_its_step(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    original = loop_.Training._after

    def after(self: Any, now: int, *args: Any, **kwargs: Any) -> None:
        original(self, now, *args, **kwargs)
        if now == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_.Training, "_after", after)
        outcome = train(
            small(drop_path_rate=0.2, proj_drop_rate=0.1), RECIPE, Blobs(), Blobs(6),
            settings=Settings(tmp_path / "cut"), accelerator=create_accelerator("cpu"),
        )  # fmt: skip
    assert outcome.stopped == 5
    assert checkpoint.last(tmp_path / "cut" / "checkpoints") == (
        tmp_path / "cut" / "checkpoints" / "step-000000005"
    )
    assert same(run(tmp_path / "cut"), expected)
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "cut")]
    losses = [[row["loss"] for row in csv.DictReader(log.splitlines())] for log in logs]
    assert losses[0] == losses[1]  # of whole epochs, wherever they were cut


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(TrainError, match=r"recipe\.epochs was 3, now 4: --resume takes the same"):
        run(tmp_path, Recipe(**{**vars(RECIPE), "epochs": 4}))
    with pytest.raises(TrainError, match="holds a training: go on with it by --resume"):
        run(tmp_path, resume=False)


def test_a_training_that_is_over_stays_over(tmp_path: Path) -> None:
    expected = run(tmp_path)
    stamp = (tmp_path / "log.csv").read_text()
    assert same(run(tmp_path), expected)
    assert (tmp_path / "log.csv").read_text() == stamp


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Broken(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return (image * float("nan") if index in broken else image), label

    order = Order(24, 4, 2, RECIPE.seed)
    broken = {index for b in list(order.batches(0, 3))[4:] for _, index in b}
    with pytest.raises(TrainError, match=r"the loss is nan at step 3: .*step-000000002; begin"):
        train(
            small(), RECIPE, Broken(), settings=Settings(tmp_path, every=1),
            accelerator=create_accelerator("cpu"),
        )  # fmt: skip


# Recipes, logs and data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"sam": 0}, "sam=0"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"mix": {"mixup_alpha": 1.0}, "batch_size": 3}, "batch_size=3: mixing takes an even one"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": {"opt": "adamm", "lr": 1}}, "optimizer opt=adamm"),
        ({"optimizer": {"opt": "sgd", "lr": 1, "wings": 2}}, "optimizer opt=sgd"),
        ({"schedule": {"sched": "cosinus"}}, "schedule sched=cosinus"),
    ],
)
def test_what_timm_does_not_know_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        run(tmp_path, Recipe(**{**vars(RECIPE), **options}))


class Stream:
    def __iter__(self) -> Iterator[Any]:
        yield from ()


class LongStream(IterableImageDataset):
    def __len__(self) -> int:
        return 100


@pytest.mark.parametrize("stream", [Stream(), LongStream(".", reader=Stream())])
def test_a_stream_of_images_is_refused(stream: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="read as a stream"):
        train(small(), RECIPE, stream, settings=Settings(tmp_path))


def test_a_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (5, 10, 15):
        log.step(step, loss=1 / step)
    log.epoch(10, epoch=1, loss=0.5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 1')
    again = Log(tmp_path, 10)
    assert [event["step"] for event in again.events] == [5, 10, 10]


def test_one_process_of_all_writes_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path, 0, writes=False)
    log.step(1, loss=0.5)
    log.epoch(1, epoch=1, loss=0.5)
    assert [len(log.steps), len(log.epochs)] == [1, 1]
    assert not list(tmp_path.iterdir())


def test_parts_of_a_split_share_out_every_class(tmp_path: Path) -> None:
    root = pictures(tmp_path / "train", classes=3, each=10)
    low, high = (Source("", tmp_path, f"train[{part}]").open() for part in (":70%", "70%:"))
    assert (len(low), len(high)) == (21, 9)
    assert sorted([*low.places, *high.places]) == list(range(30))
    for part, each in ((low, 7), (high, 3)):
        labels = [part[place][1] for place in range(len(part))]
        assert [labels.count(label) for label in range(3)] == [each] * 3
    with pytest.raises(DataError, match="from 90% to 20%"):
        Source("", root, "train[90%:20%]").open()


# What a method learns


LEARN = Recipe(
    epochs=3,
    batch_size=4,
    accumulate=2,
    smoothing=0.1,
    optimizer={"opt": "momentum", "lr": None, "weight_decay": 0.0},
    rates={"merge": 5e-2, "prune": 1e-3},
    freeze="model",
)


def learner(**options: Any) -> nn.Module:
    return vitfold.fold(small(), vitfold.LTMP(**{"flops": 0.7, **options}))


def learned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in weights.items() if name.startswith("vitfold.")}


def test_thresholds_are_learned_and_nothing_else(tmp_path: Path) -> None:
    model = learner()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    after = run(tmp_path, LEARN, model)
    assert all(values.requires_grad for values in model.parameters())
    for name, values in after.items():
        assert torch.equal(values, before[name]) == (name not in learned(after)), name
    for values in learned(after).values():
        assert 0 <= values.min() <= values.max() <= 1


def test_a_third_rate_trains_the_weights_too(tmp_path: Path) -> None:
    optimizer = {"opt": "momentum", "lr": 1e-2, "weight_decay": 0.05}
    model = learner()
    before = model.head.weight.clone()
    run(tmp_path, Recipe(**{**vars(LEARN), "freeze": "none", "optimizer": optimizer}), model)
    assert not torch.equal(model.head.weight, before)
    assert (model.vitfold.merge != 0.9).any()


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_learned_goes_on_as_it_was(tmp_path: Path, frozen: bool) -> None:
    lr = None if frozen else 1e-3
    optimizer = {**LEARN.optimizer, "lr": lr}
    recipe = Recipe(
        **{**vars(LEARN), "freeze": "model" if frozen else "none", "optimizer": optimizer}
    )
    expected = run(tmp_path / "whole", recipe, learner())
    for step in (1, 5, 8):
        dies = killed_after(step, tmp_path / str(step), recipe, learner())
        assert child(dies) == -signal.SIGKILL
        assert same(run(tmp_path / str(step), recipe, learner()), expected)


def woven() -> nn.Module:
    """With matrices that mix the 16 patches in both blocks."""
    scores = tuple(tuple(float(patch % 5) for patch in range(16)) for _ in range(2))
    method = vitfold.PruneMerge(0.3, 0.2, (0, 1), grid=(4, 4), scores=scores)
    return vitfold.fold(small(global_pool="avg"), method)


@pytest.mark.parametrize("stays", ["nothing", "the model", "the matrices"])
def test_matrices_and_model_are_trained_together_or_alone(tmp_path: Path, stays: str) -> None:
    recipe = Recipe(
        batch_size=4,
        epochs=1,
        distill=Distillation("soft", 1.0, 20.0),
        freeze="model" if stays == "the model" else "method" if stays == "the matrices" else "none",
    )
    model = woven()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    after = run(tmp_path / "whole", recipe, model)
    assert all(values.requires_grad for values in model.parameters())
    for name, values in after.items():
        still = stays == ("the matrices" if name in learned(after) else "the model")
        assert torch.equal(values, before[name]) == still, name
    assert (tmp_path / "whole" / "best").exists()
    dies = killed_after(3, tmp_path / "killed", recipe, woven())
    assert child(dies) == -signal.SIGKILL
    assert same(run(tmp_path / "killed", recipe, woven()), after)


def test_every_step_tells_of_thresholds(tmp_path: Path) -> None:
    run(tmp_path, LEARN, learner(), log_every=1)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    assert len(steps) == STEPS
    for event in steps:
        assert event["share_asked"] == 0.7
        assert 0 < event["share"] <= 1
        assert 0 <= event["top1"] <= 1
        assert [len(event[n]) for n in ("merge_threshold", "prune_threshold", "tokens")] == [2] * 3


def test_an_optimizer_step_that_leaves_the_bounds_is_brought_back(tmp_path: Path) -> None:
    rates = {"merge": 1e3, "prune": 1e3}
    weights = run(tmp_path, Recipe(**{**vars(LEARN), "rates": rates}), learner())
    for values in learned(weights).values():
        assert 0 <= values.min() <= values.max() <= 1


def digits(first: int, last: int) -> list[tuple[Tensor, int]]:
    """Some of the embedded model's training images, which are drawn anew from a seed."""
    torch.manual_seed(0)
    images, labels = load_split("train")
    return [(images[index], int(labels[index])) for index in range(first, last)]


@pytest.mark.parametrize("options", [{}, {"prune": False}], ids=str)
def test_the_share_that_was_asked_for_is_that_of_unseen_images(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = vitfold.fold(digits_model(), vitfold.LTMP(flops=0.7, **options))
    rates = {"merge": 5e-2, "prune": 1e-4}
    rates = {n: rate for n, rate in rates.items() if f"vitfold.{n}" in model.state_dict()}
    recipe = Recipe(**{**vars(LEARN), "epochs": 2, "batch_size": 32, "accumulate": 1,
                       "rates": rates})  # fmt: skip
    accelerator = create_accelerator("cpu")
    outcome = train(
        model,
        recipe,
        digits(0, 64),
        settings=Settings(tmp_path),
        accelerator=accelerator,
        calibration=digits(0, 64),
    )
    assert outcome.reached == pytest.approx(0.7, abs=0.02)
    unseen = torch.stack([image for image, _ in digits(64, 128)])
    model.eval()
    share = vitfold.flops(model, unseen) / vitfold.flops(digits_model().eval(), unseen)
    assert share == pytest.approx(0.7, abs=0.02)


def test_a_share_out_of_reach_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"flops=0.05 is not reached: .*last costs 0\.\d+ of the"):
        run(tmp_path, LEARN_MERGING, learner(flops=0.05, prune=False), calibration=Blobs())
    assert vitfold.load(tmp_path / "last")


LEARN_MERGING = Recipe(**{**vars(LEARN), "rates": {"merge": 5e-2}})


def test_thresholds_that_went_too_far_ask_for_lower_rates(tmp_path: Path) -> None:
    missed = Outcome([], None, None, asked=0.8, reached=0.88, before=0.2)
    with pytest.raises(TrainError, match=r"went too far, to 0\.200: train at lower rates"):
        check_share(missed, tmp_path)
    check_share(dataclasses.replace(missed, reached=0.81), tmp_path)


def test_a_method_that_stays_as_it_is_is_not_brought_to_its_share(tmp_path: Path) -> None:
    model = learner(flops=0.3)
    before = {n: v.clone() for n, v in model.state_dict().items() if "vitfold" in n}
    recipe = Recipe(epochs=1, batch_size=4, freeze="method")
    outcome = train(model, recipe, Blobs(), settings=Settings(tmp_path), calibration=Blobs(),
                    accelerator=create_accelerator("cpu"))  # fmt: skip
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())
    assert outcome.reached is not None
    assert outcome.before is None


def test_heights_that_training_moved_away_from_are_brought_back(tmp_path: Path) -> None:
    model = vitfold.fold(small(), vitfold.WardCut(flops=0.8))
    images = torch.stack([image for image, _ in (Blobs()[index] for index in range(24))])
    vitfold.calibrate(model, images)
    recipe = Recipe(epochs=2, batch_size=4, optimizer={"opt": "adamw", "lr": 3e-3})
    outcome = train(model, recipe, Blobs(), settings=Settings(tmp_path), calibration=Blobs(),
                    accelerator=create_accelerator("cpu"))  # fmt: skip
    assert outcome.before is not None
    assert outcome.reached == pytest.approx(0.8, abs=0.02)


def test_half_precision_of_gpus_is_refused_on_a_cpu() -> None:
    with pytest.raises(TrainError, match="float16 is for GPUs: on a CPU use bfloat16"):
        create_accelerator("cpu", "fp16")


def test_broken_checkpoints_that_were_passed_by_take_no_place(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        checkpoint.write(tmp_path, step, {"a": torch.ones(3)}, 3)
    for step in (6, 9):
        os.truncate(tmp_path / f"step-{step:09d}" / "tensors.safetensors", 5)
    with pytest.warns(UserWarning, match="is passed by"):
        assert checkpoint.read(tmp_path)[0] == 3  # type: ignore[index]
    for step in (4, 5):
        checkpoint.write(tmp_path, step, {"a": torch.ones(3)}, 1)
        assert [place.name for place in tmp_path.iterdir()] == [f"step-{step:09d}"]


def test_a_single_epoch_has_checkpoints_within_it(tmp_path: Path) -> None:
    once = Recipe(**{**vars(RECIPE), "epochs": 1, "batch_size": 2, "accumulate": 1})
    run(tmp_path, once, every=None, keep=100)
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(Blobs()) // 2
    run(tmp_path / "more", Recipe(**{**vars(once), "epochs": 2}), every=None, keep=100)
    assert len(list((tmp_path / "more" / "checkpoints").iterdir())) == 2


def test_mistakes_about_what_is_learned(tmp_path: Path) -> None:
    def begin(recipe: Recipe, model: nn.Module, **options: Any) -> None:
        run(tmp_path, recipe, model, resume=False, **options)

    with pytest.raises(TrainError, match="lr_prune: the method learns no such thing"):
        begin(LEARN, learner(prune=False))
    with pytest.raises(TrainError, match="lr_merge: the method learns no such thing"):
        begin(LEARN_MERGING, vitfold.fold(small(), "tome", r=2))
    with pytest.raises(TrainError, match="nothing is trained"):
        begin(Recipe(freeze="model", batch_size=4), small())
    with pytest.raises(TrainError, match="do not compile"):
        begin(LEARN, learner(), compiled=True)
    with pytest.raises(MethodError, match="give flops"):
        begin(LEARN, learner(flops=None))


def test_learned_thresholds_that_are_lost_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Broken(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return image * (float("nan") if index == 5 else 1), label

    with pytest.raises(TrainError, match="the loss is nan at step"):
        train(
            learner(),
            LEARN,
            Broken(),
            settings=Settings(tmp_path, every=1, log_every=1),
            accelerator=create_accelerator("cpu"),
        )


# The command


def options(folder: Path, output: Path) -> list[str]:
    return [
        "train", "vit_tiny_patch16_224", "--img-size", "32", "--crop-pct", "1",
        "--model-kwargs", "patch_size=8 embed_dim=24 num_heads=3 depth=2",
        "--data-dir", str(folder), "--val-split", "train", "-b", "4", "--epochs", "2",
        "--device", "cpu", "--output", str(output),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "data" / "train", classes=2, each=8)
    return tmp_path / "data"


def test_held_out_classes_are_numbered_as_those_of_training(tmp_path: Path) -> None:
    for split, names in {"train": "abc", "val": "bc", "test": "bz"}.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    images = Source(root=tmp_path, split="train").open()
    held_out = Source(root=tmp_path, split="val")
    assert [label for _, label in held_out.like(images).open()] == [1, 2]
    assert Source(root=tmp_path, split="train").like(images).class_map == ""
    with pytest.raises(DataError, match="training have no classes z: give --class-map"):
        Source(root=tmp_path, split="test").like(images)


def test_the_command_trains_a_model_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    assert vitfold_(monkeypatch, *options(folder, output)) == 0
    shown = capsys.readouterr().out
    assert "best top-1" in shown
    with (output / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    model = create_model(str(output / "last"))
    assert same(model.state_dict(), load_file(output / "last" / "model.safetensors"))
    assert model.num_classes == 2
    validate = ["validate", output / "best", "--data-dir", folder, "--split", "train", "--r", "2"]
    assert vitfold_(monkeypatch, *map(str, validate)) == 0
    assert vitfold_(monkeypatch, *options(folder, output)) == 2
    assert "--resume" in capsys.readouterr().err
    assert vitfold_(monkeypatch, *options(folder, output), "--resume") == 0


def test_the_command_trains_folded(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    more = ["--method", "tome", "--r", "2", "--distill", "soft", "--sam", "0.05", "--mixup", "0.5",
            "--smoothing", "0.1", "--grad-accum-steps", "2", "--clip-grad", "1",
            "--aa", "rand-m5-n1", "--reprob", "0.2"]  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out"), *more) == 0
    model = vitfold.load(tmp_path / "out" / "last")
    assert vitfold.trace(model, torch.zeros(1, 3, 32, 32)).counts == [[15], [13]]


def test_the_command_learns_thresholds(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    more = ["--method", "ltmp", "--flops", "0.9", "--lr-merge", "0.05", "--epochs", "1"]
    assert vitfold_(monkeypatch, *options(folder, output), *more) == 0
    shown = capsys.readouterr().out
    assert "FLOPs reached" in shown
    assert (output / "learned.png").stat().st_size > 1000
    recipe = json.loads((output / "recipe.json").read_text())["recipe"]
    assert recipe["freeze"] == "model"
    assert recipe["rates"] == {"merge": 0.05, "prune": 5e-6}
    assert recipe["smoothing"] == 0.1
    assert recipe["optimizer"] == {"opt": "momentum", "weight_decay": 0.0}
    assert not (output / "best").exists()
    seen = ["validate", output / "last", "--data-dir", folder, "--split", "train"]
    assert vitfold_(monkeypatch, *map(str, seen)) == 0
    wrong = [*more, "--method-kwargs", "prune=False", "--lr-prune", "1e-6", "--output"]
    assert vitfold_(monkeypatch, *options(folder, output), *wrong, str(tmp_path / "b")) == 2
    assert "lr_prune" in capsys.readouterr().err


def test_the_command_keeps_thresholds_and_trains_the_rest(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    more = ["--method", "ltmp", "--flops", "0.9", "--lr", "1e-4", "--epochs", "1"]
    given = [*options(folder, tmp_path / "out"), *more, "--freeze", "method"]
    assert vitfold_(monkeypatch, *given, "--lr-merge", "0.1") == 2
    assert "leave out --lr-merge" in capsys.readouterr().err
    vitfold_(monkeypatch, *given)  # as far as thresholds of a model that is not trained carry
    kept = checkpoint.last(tmp_path / "out" / "checkpoints")
    assert kept is not None
    before = vitfold.LTMP(flops=0.9).merge_threshold
    assert checkpoint.weights(kept)["vitfold.merge"].tolist() == pytest.approx([before] * 2)
    for rate in ("nan", "inf", "-1"):
        assert vitfold_(monkeypatch, *options(folder, tmp_path / "no"), f"--lr={rate}") == 2
        assert "expected a number from 0 up" in capsys.readouterr().err


def test_the_command_has_a_rate_for_either_matrix(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    more = ["--method", "prune-merge", "--method-kwargs", "iterations=2 keep=0.5 blocks=[0,1]",
            "--lr-merge", "1e-3", "--lr-restore", "1e-2"]  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out"), *more) == 0
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())["recipe"]
    assert recipe["rates"] == {"merge": 1e-3, "restore": 1e-2}


def test_the_command_writes_over_no_model(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out")) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out")) == 2
    assert "holds what was trained before" in capsys.readouterr().err


def test_the_command_searches_and_trains_matrices(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    more = ["--method", "prune-merge", "--flops", "0.8", "--distill", "soft", "--method-kwargs",
            "iterations=2 scope=block blocks=[0,1]"]  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, output), *more, "--freeze", "model") == 0
    recipe = json.loads((output / "recipe.json").read_text())["recipe"]
    assert recipe["freeze"] == "model"
    assert recipe["optimizer"]["lr"] == 1e-4
    assert recipe["distill"]["temperature"] == 20
    model = vitfold.load(output / "last")
    method = model._vitfold.method
    assert (method.scope, method.blocks, method.grid) == ("block", (0, 1), (4, 4))
    x = torch.zeros(1, 3, 32, 32)
    share = vitfold.flops(model, x) / vitfold.flops(vitfold.unfold(model), x)
    assert share == pytest.approx(0.8, abs=0.01)
    again = [*options(folder, output), *more, "--resume", "--freeze", "model"]
    assert vitfold_(monkeypatch, *again) == 0
    assert vitfold_(monkeypatch, *options(folder, output), "--freeze", "matrices") == 2
    assert "expected none, model, method" in capsys.readouterr().err
    assert vitfold_(monkeypatch, *options(folder, output), *more, "--r", "3", "--resume") == 2
    assert "takes --flops" in capsys.readouterr().err
    more[-1] = "keeps=2"
    assert vitfold_(monkeypatch, *options(folder, output), *more, "--resume") == 2
    assert "no option 'keeps'" in capsys.readouterr().err
    scores = (output / "scores.safetensors").read_bytes()
    assert vitfold_(monkeypatch, *again[:-3], "--seed", "5") == 2
    assert "holds a training" in capsys.readouterr().err
    assert (output / "scores.safetensors").read_bytes() == scores


def test_what_cannot_be_saved_is_not_trained(tmp_path: Path) -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1)
    with pytest.raises(PlanError, match="VisionTransformer cannot be saved"):
        train(model, RECIPE, Blobs(), settings=Settings(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_embedded_model_brings_its_own_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    every = digits_._digits
    few = {split: tuple(part[:48] for part in every(split)) for split in ("train", "test")}
    monkeypatch.setattr(digits_, "_digits", few.get)
    given = ["train", "digits", "--pretrained", "-b", "24", "--epochs", "1", "--device", "cpu"]
    for method, name in ([], "dense"), (["--method", "tome", "--flops", "0.6"], "folded"):
        output = tmp_path / name
        assert vitfold_(monkeypatch, *given, "--lr", "1e-5", *method, "--output", output) == 0
        assert "best top-1" in capsys.readouterr().out
        assert vitfold_(monkeypatch, "validate", output / "last") == 0
        assert vitfold_(monkeypatch, *given, *method, "--output", output, "--resume") == 2
        assert "was 1e-05" in capsys.readouterr().err
        same = [*given, "--lr", "1e-5", *method, "--output", output, "--resume"]
        assert vitfold_(monkeypatch, *same, "--no-val") == 2
        assert "val_split was 'validation', now None" in capsys.readouterr().err
        again = [*given, "--output", tmp_path / f"{name}-more"]
        assert vitfold_(monkeypatch, *again[:1], output / "last", *again[3:]) == 0
    assert vitfold_(monkeypatch, *given, "--reprob", "0.5", "--output", tmp_path / "erased") == 2
    assert "re_prob: the digits take only no_aug" in capsys.readouterr().err
    images = digits_.Digits("train")
    still = Source("digits", split="train").augment(digits_model(), {"no_aug": True})
    assert still(digits_.Digit(Tensor([1]), Tensor([2]))) == 1
    images.transform = Source("digits", split="train").augment(digits_model(), {"hflip": 0.5})
    one, other = images[3][0], images[3][0]
    assert not torch.equal(one, other)
    assert torch.equal(digits_.Digits("train")[3][0], digits_.Digits("train")[3][0])


def test_a_search_leaves_out_what_cannot_be_read_as_training_does(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    next((folder / "train").rglob("*.png")).write_bytes(b"no picture")
    found = ["--method", "prune-merge", "--flops", "0.8", "--method-kwargs", "iterations=4"]
    given = [*options(folder, tmp_path / "out"), *found, "--no-val"]
    assert vitfold_(monkeypatch, *given) == 0


def test_a_teacher_sees_images_as_it_wants_them(tmp_path: Path) -> None:
    other = small(pretrained_cfg_overlay={"mean": (0.1,) * 3, "std": (0.3,) * 3})
    save_model(other, tmp_path)
    model = subject.teacher(str(tmp_path), small())
    assert isinstance(model, Renormalized)
    save_model(small(), tmp_path)
    assert not isinstance(subject.teacher(str(tmp_path), small()), Renormalized)


def test_images_of_which_none_can_be_read_end_a_training_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    for picture in (folder / "train").rglob("*.png"):
        picture.write_bytes(b"no picture")
    for workers in "0", "1":
        more = ["--workers", workers]
        assert vitfold_(monkeypatch, *options(folder, tmp_path / workers), *more) == 2
        shown = capsys.readouterr().err
        assert "cannot be read as an image" in shown
        assert shown.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--opt", "adamm"], "optimizer opt=adamm"),
        (["--mean", "a,b"], "--mean 'a,b'"),
        (["--device", "gpu"], "--device 'gpu'"),
        (["--distill", "warm"], "distill='warm'"),
        (["-b", "64"], "fewer than the 64 of one step"),
        (["--train-split", "trian"], "no split 'trian' in it: it has train"),
        (["--num-classes", "1"], "the data has 2 classes, the model 1"),
        (["--teacher", "digits"], "--distill soft"),
        (["--teacher", "digits", "--distill", "soft"], "--teacher has classes=10"),
        (["--output", __file__], "no directory"),
        (["--initial-checkpoint", "nowhere"], "nowhere is no checkpoint"),
        (["--aug-kwargs", "wings=2"], "augmentation"),
        (["--aug-kwargs", "separate=True"], "one transform of all"),
        (["--std", "0,0,0"], "std=[0.0, 0.0, 0.0]"),
        (["--std", "0.5,0.5"], "std=[0.5, 0.5]: expected three numbers"),
        (["--crop-pct", "nan"], "crop_pct=nan"),
        (["--scale", "0.8,0.5"], "scale=[0.8, 0.5]: expected two numbers, the smaller first"),
        (["--ratio", "0,0"], "ratio=[0.0, 0.0]: expected two numbers"),
        (["--lr", "1e40"], "lr=1e+40"),
        (["--min-lr", "nan"], "min_lr=nan"),
        (["--warmup-lr", "-1"], "warmup_lr=-1.0"),
        (["--layer-decay", "0"], "layer_decay=0.0"),
        (["--amp", "--amp-dtype", "float16"], "float16 is for GPUs"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path, more: list[str], message: str,
) -> None:  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "out"), *more) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_recipe_that_is_broken_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    asked = options(folder, output)
    assert vitfold_(monkeypatch, *asked) == 0
    whole = (output / "recipe.json").read_text()
    for text, words in (("{", "cannot be read"), ("[1]", "no recipe"), (None, "cannot be read")):
        (output / "recipe.json").unlink(missing_ok=True)
        if text:
            (output / "recipe.json").write_text(text)
        capsys.readouterr()
        assert vitfold_(monkeypatch, *asked, "--resume") == 2
        assert words in capsys.readouterr().err
    (output / "recipe.json").write_text(whole)
    assert vitfold_(monkeypatch, *asked, "--resume") == 0


def test_data_that_have_changed_are_other_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    asked = options(folder, tmp_path / "out")
    assert vitfold_(monkeypatch, *asked) == 0
    next(folder.rglob("*.png")).unlink()
    assert vitfold_(monkeypatch, *asked, "--resume") == 2
    assert "images was 16, now 15" in capsys.readouterr().err


def test_what_a_folder_without_splits_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    asked = options(folder / "train", tmp_path / "out")
    place = asked.index("--val-split")
    del asked[place : place + 2]
    assert vitfold_(monkeypatch, *asked) == 2
    assert "those of training" in capsys.readouterr().err
    assert vitfold_(monkeypatch, *asked, "--no-val") == 0


def test_a_training_begins_from_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert vitfold_(monkeypatch, *options(folder, tmp_path / "one"), "--seed", "1") == 0
    kept = max((tmp_path / "one" / "checkpoints").iterdir())
    begun = [*options(folder, tmp_path / "two"), "--initial-checkpoint", str(kept)]
    assert vitfold_(monkeypatch, *begun, "--lr", "1e-30", "--weight-decay", "0") == 0
    one, two = (load_file(tmp_path / o / "last" / "model.safetensors") for o in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    capsys.readouterr()
    begun[begun.index("patch_size=8 embed_dim=24 num_heads=3 depth=2")] = "depth=1"
    begun[-3] = str(tmp_path / "three")
    assert vitfold_(monkeypatch, *begun) == 2
    assert "of another model or method" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer={"opt": "sgd", "lr": 3e38, "weight_decay": 10.0})
    with pytest.raises(TrainError, match="not finite at step"):
        train(
            small(), recipe, Blobs(), settings=Settings(tmp_path, every=1),
            accelerator=create_accelerator("cpu"),
        )  # fmt: skip
    assert not (tmp_path / "last").exists()
    assert all(
        load_file(file)[name].isfinite().all()
        for file in tmp_path.rglob("tensors.safetensors")
        for name in load_file(file)
    )


def test_an_evaluation_that_fails_loses_nothing(tmp_path: Path) -> None:
    class Unreadable(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise DataError("one that cannot be read")

    asked = {"settings": Settings(tmp_path), "accelerator": create_accelerator("cpu")}
    with pytest.raises(DataError, match="cannot be read"):
        train(small(), RECIPE, Blobs(), Unreadable(), **asked)
    steps = Order(24, RECIPE.batch_size, RECIPE.accumulate, RECIPE.seed).steps
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{steps:09d}"]
    asked["settings"] = Settings(tmp_path, resume=True)
    late = train(small(), RECIPE, Blobs(), Blobs(), **asked)
    asked["settings"] = Settings(tmp_path / "undisturbed")
    once = train(small(), RECIPE, Blobs(), Blobs(), **asked)
    told = [[(e["epoch"], e["loss"], e["top1"]) for e in o.epochs] for o in (late, once)]
    assert told[0] == told[1]
    assert len(told[0]) == RECIPE.epochs


SHARPNESS_AWARE = ["--sam", 0.05, "--opt", "sgd", "--lr", 0.05, "--clip-grad", 1]
THRESHOLDS = ["--method", "ltmp", "--flops", 0.93, "--lr-merge", 0.05, "--lr-prune", 1e-3]


@pytest.mark.parametrize(
    ("way", "file"),
    [(SHARPNESS_AWARE, "model.safetensors"), (THRESHOLDS, "weights.safetensors")],
    ids=["all", "thresholds"],
)
def test_two_processes_come_to_what_one_comes_to(
    way: list[Any], file: str, folder: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randint(256, (30, 40, 3), generator=generator).byte()
        Image.fromarray(noise.numpy()).save(path)
    for output, processes, batch in (("one", 1, 8), ("two", 2, 4)):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m"]
        command = [sys.executable, "-m", *(launcher if processes == 2 else []), "vitfold"]
        asked = [*options(folder, tmp_path / output), "-b", batch, *way]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command), *map(str, asked)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / o / "last" / file) for o in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
    rows = [json.loads((tmp_path / o / "recipe.json").read_text()) for o in ("one", "two")]
    assert [row["processes"] for row in rows] == [1, 2]


# Models in directories


def test_saved_models_are_models_by_name(tmp_path: Path) -> None:
    model = small(global_pool="avg")
    save_model(model, tmp_path / "m")
    again = create_model(str(tmp_path / "m"))
    assert same(model.state_dict(), again.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), again.eval()(x))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    save_model(small(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(small().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(vitfold.PlanError, match=r"has no \.safetensors"):
        create_model(str(tmp_path))
