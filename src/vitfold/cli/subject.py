"""What a training is about, as the command line says it: images, a model and a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from vitfold.cli import options, values
from vitfold.cli.groups import Group, option
from vitfold.cli.names import DECODERS, METHODS
from vitfold.cli.recipe import numbers
from vitfold.errors import TrainError

Options = dict[str, Any]


@dataclass(frozen=True)
class Data(options.Task):
    """The images to train and to evaluate on, and what their labels mean."""

    panel = "Data"

    dataset: Annotated[str, option("timm's dataset name: hfds/..., torch/cifar10, ...")] = ""
    data_dir: Annotated[
        Path | None,
        option("Folder or tar of class folders, or of images and annotations.", "--data-dir"),
    ] = None
    train_split: Annotated[str, option("What to train on.")] = "train"
    val_split: Annotated[str | None, option("What to evaluate on.", show_default="validation")] = (
        None
    )
    no_val: Annotated[bool, option("Do not evaluate.", "--no-val")] = False
    class_map: Annotated[str, option("File that maps class names to labels.")] = ""
    num_classes: Annotated[int | None, option("Default: what the dataset has.", min=1)] = None

    @property
    def held_out(self) -> str:
        """The split that is evaluated on."""
        return self.val_split or "validation"

    def check(self, model: str) -> None:
        """Refuse to begin without images: a model may name a dataset that it was made for."""
        from vitfold.saving.models import dataset_of

        if not (self.is_set or self.pixels or dataset_of(model)):
            raise options.no_data()

    @property
    def about(self) -> Options:
        """What the data of a resumed training has to have in common with the one before."""
        return {
            "data": [self.dataset, str(self.data_dir), self.train_split, self.class_map],
            "val_split": None if self.no_val else self.held_out,
        }

    @property
    def is_set(self) -> bool:
        """Whether anybody says where images are."""
        return self.images(self.train_split).source.is_set

    def images(self, split: str) -> options.Images:
        """Where the images of one split are."""
        return options.Images(self.dataset, self.data_dir, split, self.class_map)


@dataclass(frozen=True)
class Start(Group):
    """The model that a training begins with."""

    panel = "Model"

    pretrained: Annotated[bool, option("Start from the published weights.")] = False
    initial_checkpoint: Annotated[
        Path | None, option("Start from the weights of a checkpoint, checkpoints/step-...")
    ] = None
    model_kwargs: options.ModelKwargs = field(default_factory=list)
    img_size: options.ImageSize = None
    plan: options.PlanDirectory = None
    mean: Annotated[str | None, option("Mean of the channels: 0.5,0.5,0.5.")] = None
    std: Annotated[str | None, option("Deviation of the channels: 0.5,0.5,0.5.")] = None
    crop_pct: Annotated[float | None, option("Share of an image that is looked at.")] = None
    decoder: Annotated[
        str | None, option(f"Of a new segmenter: {' or '.join(DECODERS)}.", show_default="mask")
    ] = None
    drop_path: Annotated[float, option("Share of blocks left out.", min=0, max=1)] = 0.0

    @property
    def arguments(self) -> Options:
        """What the model takes when it is made."""
        return values.arguments(self.model_kwargs, self.img_size)

    @property
    def overlay(self) -> Options:
        """What is another way in how it wants its images."""
        mean, std = numbers("mean", self.mean), numbers("std", self.std)
        for name, channels in ("mean", mean), ("std", std):
            if channels is not None and not (
                len(channels) in (1, 3) and all(map(math.isfinite, channels))
            ):
                raise TrainError(f"{name}={channels}: expected three numbers")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise TrainError(f"crop_pct={self.crop_pct}: expected a number up to 1, above 0")
        return values.present(mean=mean, std=std, crop_pct=self.crop_pct)

    @property
    def about(self) -> Options:
        """What a training that is resumed has to have in common with the one before."""
        arguments = self.arguments | self.overlay | values.present(drop_path=self.drop_path or None)
        start = self.initial_checkpoint and str(self.initial_checkpoint)
        return {
            "arguments": arguments,
            "pretrained": self.pretrained,
            "initial_checkpoint": start,
            "plan": self.plan and str(self.plan),
        }

    @property
    def changes(self) -> Options:
        """What is to be another way than in a model that is known by name."""
        return values.present(
            drop_path_rate=self.drop_path or None, pretrained_cfg_overlay=self.overlay or None
        )


@dataclass(frozen=True)
class Choice(options.Choice):
    """A method, or none."""

    method: Annotated[str, option(f"none, {', '.join(METHODS)}.")] = "none"

    @property
    def searches(self) -> bool:
        """Whether it is found by a search in images first."""
        from vitfold.methods.registry import named

        return self.method.lower() != "none" and named(self.method).command == "search"
