"""The loop: what decides the result, what goes wrong on the way, and what it leaves."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.training import RECIPE, Blobs, run, same, small, training
from timm.data import IterableImageDataset
from timm.models import VisionTransformer
from torch import Tensor

from vitfold.errors import DataError, PlanError, TrainError
from vitfold.train import Recipe, Settings, TrainingData, create_accelerator, train
from vitfold.train.examples import Order


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


def test_a_model_learns(tmp_path: Path) -> None:
    model = small()
    recipe = Recipe(epochs=25, batch_size=8, optimizer={"opt": "adamw", "lr": 3e-3})
    outcome = training(model, recipe, Blobs(48), tmp_path, Blobs(24))
    assert outcome.best is not None
    assert outcome.best > 0.5  # of three classes
    assert outcome.epochs[-1]["loss"] < 0.9 * outcome.epochs[0]["loss"]


def test_mixed_images_are_mixed_anew_in_no_second_pass(tmp_path: Path) -> None:
    mixed = Recipe(**{**vars(RECIPE), "mix": {"mixup_alpha": 0.8}, "sam": 1e-12})
    plain = Recipe(**{**vars(mixed), "sam": None})
    a, b = run(tmp_path / "a", mixed), run(tmp_path / "b", plain)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Broken(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return (image * float("nan") if index in broken else image), label

    order = Order(24, 4, 2, RECIPE.seed)
    broken = {index for b in list(order.batches(0, 3))[4:] for _, index in b}
    with pytest.raises(TrainError, match=r"the loss is nan at step 3: .*step-000000002; begin"):
        training(small(), RECIPE, Broken(), tmp_path, every=1)


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
        train(small(), RECIPE, TrainingData(stream), Settings(tmp_path))


def test_half_precision_of_gpus_is_refused_on_a_cpu() -> None:
    with pytest.raises(TrainError, match="float16 is for GPUs: on a CPU use bfloat16"):
        create_accelerator("cpu", "fp16")


def test_a_single_epoch_has_checkpoints_within_it(tmp_path: Path) -> None:
    once = Recipe(**{**vars(RECIPE), "epochs": 1, "batch_size": 2, "accumulate": 1})
    run(tmp_path, once, every=None, keep=100)
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(Blobs()) // 2
    run(tmp_path / "more", Recipe(**{**vars(once), "epochs": 2}), every=None, keep=100)
    assert len(list((tmp_path / "more" / "checkpoints").iterdir())) == 2


def test_what_cannot_be_saved_is_not_trained(tmp_path: Path) -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1)
    with pytest.raises(PlanError, match="VisionTransformer cannot be saved"):
        train(model, RECIPE, TrainingData(Blobs()), Settings(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer={"opt": "sgd", "lr": 3e38, "weight_decay": 10.0})
    with pytest.raises(TrainError, match="not finite at step"):
        training(small(), recipe, Blobs(), tmp_path, every=1)
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

    with pytest.raises(DataError, match="cannot be read"):
        training(small(), RECIPE, Blobs(), tmp_path, Unreadable())
    steps = Order(24, RECIPE.batch_size, RECIPE.accumulate, RECIPE.seed).steps
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{steps:09d}"]
    late = training(small(), RECIPE, Blobs(), tmp_path, Blobs(), resume=True)
    once = training(small(), RECIPE, Blobs(), tmp_path / "undisturbed", Blobs())
    rows = [[(e["epoch"], e["loss"], e["top1"]) for e in o.epochs] for o in (late, once)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == RECIPE.epochs
