"""Images for a model: its own preprocessing, and labelled data through timm's readers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.families import find

Prepare = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Source:
    """Where labelled images are, in timm's terms.

    dataset: type or name, as `hfds/...`, `wds/...`, `torch/cifar10`; empty for a folder or a tar.
    root: the folder or the tar.
    split: validation, test, ...
    class_map: a file that maps class names to labels.
    """

    dataset: str = ""
    root: Path | None = None
    split: str = "validation"
    class_map: str = ""

    def open(self) -> Any:
        """The dataset; images come as they are stored."""
        if self.root is not None and not self.dataset and not self.root.exists():
            raise DataError(f"--data-dir {self.root}: there is no such folder or file")
        try:
            return timm.data.create_dataset(
                self.dataset,
                root=None if self.root is None else str(self.root),
                split=self.split,
                class_map=self.class_map,
            )
        except Exception as error:  # readers raise what they like
            what = self.dataset or self.root
            raise DataError(f"{what} cannot be read as a dataset: {_line(error)}") from error


def data_config(model: nn.Module) -> dict[str, Any]:
    """Size, interpolation, mean and deviation, crop: what the model expects."""
    found = find(model)
    config: dict[str, Any] = timm.data.resolve_data_config({}, model=found.trunk)
    return config | {"input_size": found.size}


def preprocessing(model: nn.Module) -> Prepare:
    """From a picture to the model's input."""
    return timm.data.create_transform(**data_config(model), is_training=False)  # type: ignore[no-any-return]


def loader(model: nn.Module, source: Source, batch_size: int, workers: int) -> Any:
    """Batches of labelled images as the model expects them."""
    dataset = source.open()
    dataset.transform = preprocessing(model)
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, num_workers=workers)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
