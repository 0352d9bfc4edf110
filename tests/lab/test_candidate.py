"""What a sweep compares: folds, smaller images, smaller models, trained ones."""

from typing import Any

import pytest
import torch
from support.labelled import swept
from support.models import images, registered
from transformers import ViTConfig, ViTForImageClassification

import vitfold
from vitfold.lab.candidate import (
    baselines,
    candidates,
    smaller_images,
    smaller_models,
    trained,
)
from vitfold.lab.styles import AT_RANDOM, SMALLER_IMAGES

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
         "intermediate_size": 96, "image_size": 64}  # fmt: skip


def test_smaller_images_cost_about_what_is_asked() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    rows = swept(model, [*candidates(model, [], []), *smaller_images(model, [0.6, 0.3])])
    dense, more, less = rows
    assert {more.method, less.method} == {SMALLER_IMAGES}
    assert dense.gflops > more.gflops > less.gflops
    assert more.gflops / dense.gflops == pytest.approx(0.6, abs=0.2)
    assert less.detail.endswith("px")
    assert model.patch_embed.grid_size == (5, 5)


def test_baselines_cost_what_is_asked() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    dense, *rows = swept(model, [*candidates(model, [], []), *baselines(model, [0.7])])
    assert [row.method for row in rows] == [AT_RANDOM, SMALLER_IMAGES]
    assert [row.flops for row in rows] == [0.7, 0.7]
    assert rows[0].gflops / dense.gflops == pytest.approx(0.7, abs=0.01)
    assert rows[0].detail == "Drop(flops=0.7, inflection=0.0, cue='random')"


def test_what_cannot_be_resized_is_left_out_in_words() -> None:
    model = ViTForImageClassification(ViTConfig(**SMALL)).eval()
    said: list[str] = []
    [only] = baselines(model, [0.8], said.append)
    assert only.method == AT_RANDOM
    assert len(said) == 1
    assert "ViTModel" in said[0]
    assert "smaller images" in said[0]


def test_making_smaller_images_leaves_the_model_as_it_was() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new: Any = smaller_images(model, [0.6, 0.3])[1].make()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.pos_embed.shape == before["pos_embed"].shape
    assert new.model.patch_embed.proj.weight is model.patch_embed.proj.weight


def test_smaller_models_stand_beside() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    other = registered("vit_tiny_patch16_224", depth=1)
    rows = swept(model, smaller_models({"one block": lambda: other}))
    assert rows[0].method == "smaller model one block"
    assert rows[0].gflops < 0.5 * swept(model, candidates(model, [], []))[0].gflops


def test_what_a_search_found_is_no_name() -> None:
    model = registered("vit_tiny_patch16_224", depth=4)
    batches = [(images(model, 4), torch.arange(4)) for _ in range(2)]
    result = vitfold.PruneMerge.search(model, batches, keep=0.7, iterations=2)
    [candidate] = trained({"found": vitfold.fold(model, result)})
    assert len(candidate.method) < 100


@pytest.mark.parametrize(
    "method",
    [vitfold.ToMe(r=3), vitfold.ToMe(r=(3, -0.5)), vitfold.MergeDrop(r=2, drop=1)],
    ids=str,
)
def test_models_folded_by_numbers_are_candidates(method: vitfold.Method) -> None:
    [candidate] = trained({"run": vitfold.fold(registered("vit_tiny_patch16_224"), method)})
    assert candidate.method.startswith(f"{method.name} r=")
