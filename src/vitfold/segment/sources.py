"""Scenes (images with a class for every pixel) as a source of data for a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from vitfold.data.splits import share_of
from vitfold.data.subsets import per_cent
from vitfold.errors import DataError
from vitfold.segment.scenes import Labels, open_scenes
from vitfold.segment.transforms import SCALE, CenterWindow, RandomWindow, WholeScene
from vitfold.tools.wants import data_config


def scene_transform(model: nn.Module) -> WholeScene:
    """From a photograph of any size to an image for windows to slide over."""
    return WholeScene(*model_input(model))


def model_input(model: nn.Module) -> tuple[tuple[int, int], Sequence[float], Sequence[float]]:
    """The size of a segmenter's window, and mean and std of its three channels."""
    config = data_config(model)
    if config["input_size"][0] != 3:
        raise DataError(f"the model takes {config['input_size'][0]} channels: photographs have 3")
    return tuple(config["input_size"][1:]), config["mean"], config["std"]


@dataclass(frozen=True)
class SceneSource:
    """A source of images with a class for every pixel.

    root, split: as `open_scenes` takes them; `train[:90%]` is the first nine tenths.
    """

    root: Path
    split: str
    labels: Labels
    is_set: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> CenterWindow:
        """The transform to one window, the middle of a scene."""
        return CenterWindow(*model_input(model))

    def whole(self, model: nn.Module) -> WholeScene:
        """The transform of a whole scene, whose labels stay as fine as they are."""
        return scene_transform(model)

    def augment(self, model: nn.Module, options: dict[str, Any]) -> CenterWindow | RandomWindow:
        """The transform for training: random windows, by the options of timm that make sense where
        labels move too."""
        active = {name: value for name, value in options.items() if value}
        if active.pop("no_aug", False):
            return self.prepare(model)
        scale = active.pop("scale", SCALE)
        flip, jitter = active.pop("hflip", 0.0), active.pop("color_jitter", 0.0)
        if active:
            raise DataError(f"{', '.join(active)}: only images of one class are changed so")
        return RandomWindow(*model_input(model), scale, flip, jitter)

    def open(self) -> Any:
        """The scenes; pictures come as they are stored."""
        name, share = share_of(self.split)
        scenes = open_scenes(self.root, name, self.labels)
        return per_cent(scenes, *share) if share else scenes

    def shares(self, other: Any) -> bool:
        """Whether both sources hold some scene in common, under whatever names."""
        return isinstance(other, SceneSource) and bool(self._scenes() & other._scenes())

    def _scenes(self) -> set[tuple[Any, ...]]:
        opened = self.open()
        whole = getattr(opened, "whole", opened)
        places = getattr(opened, "places", range(len(whole)))
        return {(whole.place.root, *whole.pairs[place]) for place in places}
