"""Small trainings, and what they learn from."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import vitfold
from vitfold.train import Outcome, Recipe, Settings, TrainingData, create_accelerator, train


class Blobs:
    """Images whose class shows in their mean, with noise that only the seed decides."""

    def __init__(self, images: int = 24, classes: int = 3) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % self.classes
        return torch.randn(3, 32, 32) * 0.5 + label, label


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    create: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=2,
        num_classes=3, **options,
    )  # fmt: skip
    return create


RECIPE = Recipe(epochs=3, batch_size=4, accumulate=2, clip=1.0, smoothing=0.1)


def training(
    model: nn.Module,
    recipe: Recipe,
    images: Any,
    place: Path,
    held_out: Any = None,
    calibration: Any = None,
    precision: str = "no",
    **settings: Any,
) -> Outcome:
    """A training on the CPU."""
    data = TrainingData(images, held_out, calibration, classes=3)
    accelerator = create_accelerator("cpu", precision)
    return train(model, recipe, data, Settings(place, accelerator=accelerator, **settings))


def run(
    output: Path, recipe: Recipe = RECIPE, model: nn.Module | None = None, **options: Any
) -> dict[str, Tensor]:
    """The weights after one that goes on where there is one."""
    model = model or small(drop_path_rate=0.2, proj_drop_rate=0.1)
    options = {"every": 2, "resume": True} | options
    training(model, recipe, Blobs(), output, Blobs(6), **options)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


STEPS = 9


LEARN = Recipe(
    epochs=3,
    batch_size=4,
    accumulate=2,
    smoothing=0.1,
    optimizer={"opt": "momentum", "lr": None, "weight_decay": 0.0},
    rates={"merge": 5e-2, "prune": 1e-3},
    freeze="model",
)


LEARN_MERGING = Recipe(**{**vars(LEARN), "rates": {"merge": 5e-2}})


def learner(**options: Any) -> nn.Module:
    return vitfold.fold(small(), vitfold.LTMP(**{"flops": 0.7, **options}))


def learned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in weights.items() if name.startswith("vitfold.")}


def options(folder: Path, output: Path) -> list[str]:
    return [
        "train", "vit_tiny_patch16_224", "--img-size", "32", "--crop-pct", "1",
        "--model-kwargs", "patch_size=8 embed_dim=24 num_heads=3 depth=2",
        "--data-dir", str(folder), "--val-split", "train", "-b", "4", "--epochs", "2",
        "--device", "cpu", "--output", str(output),
    ]  # fmt: skip
