"""The dataset of digits, and the small vision transformer that reads them.

The pictures are the 8x8 handwritten digits bundled with scikit-learn, enlarged and put on
a canvas of 14 x 14 patches, so that many tokens show background or the same stroke.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from operator import attrgetter
from typing import Any, ClassVar, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vitfold.data.splits import also
from vitfold.errors import DataError, missing
from vitfold.folding.families import find

NAME: Final = "digits"
"""What the dataset is called."""

MEAN: Final = 0.2
STD: Final = 0.3
"""Canvas brightness, from 0 to 1, is normalized as (brightness - MEAN) / STD."""

_CANVAS: Final = 56
_SMALLEST, _LARGEST = 46.0, 54.0  # side of the enlarged digit, in pixels
_STEEPEST: Final = 0.2  # rotation either way, in radians
_TEST_FRACTION: Final = 0.25
_SPLIT_SEED: Final = 0

# Fractional parts of index * step fill the unit square evenly (Roberts' R2 sequence, twice), and,
# unlike a random generator, give the same places on every platform and PyTorch version.
_STEPS: Final = (0.7548776662466927, 0.5698402909980532, 0.6180339887498949, 0.4142135623730951)


def load_split(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return normalized images, ``(n, 1, 56, 56)``, and labels, ``(n,)``.

    The test split is the same at every call. The train split is drawn anew from PyTorch's global
    generator: each call shows the same digits at other places, sizes and angles.
    """
    digits, labels, indices = _digits(split)
    if split == "train":
        return _render(digits, torch.rand(len(digits), 6)), labels
    return _placed(digits, indices), labels


class Digit(NamedTuple):
    """A digit: on its canvas, at the place that is always its own, and the ink alone."""

    placed: Tensor
    ink: Tensor

    def anew(self) -> Tensor:
        """The digit at another place, size and angle, drawn from PyTorch's global generator."""
        return _render(self.ink.unsqueeze(0), torch.rand(1, 6))[0]


class Digits(Dataset[Any]):
    """The digits of a split with their labels.

    split: train or test, or another name of these; validation is test.
    transform: makes an image of a `Digit`.
    """

    class_to_idx: ClassVar = {str(number): number for number in range(10)}

    def __init__(self, split: str) -> None:
        self.ink, self.labels, indices = _digits(split_name(split))
        self.placed = _placed(self.ink, indices)
        self.transform: Callable[[Digit], Tensor] = attrgetter("placed")

    @property
    def targets(self) -> list[int]:
        """The labels, in the order of the images."""
        return [int(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        digit = Digit(self.placed[place], self.ink[place])
        return self.transform(digit), int(self.labels[place])


def split_name(split: str) -> Literal["train", "test"]:
    """The name of a split of the digits, as `load_split` takes it."""
    names = also(split)
    if "train" in names:
        return "train"
    if "validation" in names or "test" in names:
        return "test"
    raise DataError(
        f"split {split!r}: the digits are split already, in train and test: give one of them, or "
        "other images by --data-dir"
    )


def prepare(model: nn.Module) -> Callable[[Digit], Tensor]:
    """The transform of evaluation: every digit at its own place, `[1, 56, 56]`."""
    if (size := tuple(find(model).size)) != (1, _CANVAS, _CANVAS):
        raise DataError(
            f"the model takes images of {'x'.join(map(str, size))}, the digits are of "
            f"1x{_CANVAS}x{_CANVAS}: give --model-kwargs in_chans=1 and --img-size {_CANVAS}, or "
            "other images by --data-dir"
        )
    return attrgetter("placed")


def augment(model: nn.Module, options: dict[str, Any]) -> Callable[[Digit], Tensor]:
    """The transform of training: at another place, size and angle each time. Digits have no colour
    and are not mirrored, so that timm's options for these, which are on unless one turns them off,
    change nothing; others are refused."""
    placed = prepare(model)
    active = {name: value for name, value in options.items() if value}
    if active.pop("no_aug", False):
        return placed
    if others := active.keys() - {"hflip", "color_jitter"}:
        raise DataError(f"{', '.join(sorted(others))}: the digits take only no_aug")
    return Digit.anew


@cache
def _digits(split: Literal["train", "test"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return 8x8 digits with brightness from 0 to 1, their labels and their indices in the data."""
    try:
        datasets = import_module("sklearn.datasets")
        selection = import_module("sklearn.model_selection")
    except ImportError:
        raise missing("scikit-learn", "demo") from None
    bunch = datasets.load_digits()
    shares = selection.train_test_split(
        range(len(bunch.target)),
        test_size=_TEST_FRACTION,
        random_state=_SPLIT_SEED,
        stratify=bunch.target,
    )
    indices = torch.tensor(shares[("train", "test").index(split)])
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    return images[indices], torch.from_numpy(bunch.target).long()[indices], indices


def _placed(digits: Tensor, indices: Tensor) -> Tensor:
    """Digits on their canvas, each at the place that is always its own."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    return _render(digits, _fixed_draws(indices), generator)


def _fixed_draws(indices: Tensor) -> Tensor:
    """Give each index an upright digit of middling size, at a place of its own."""
    upright = torch.full((len(indices), 2), 0.5)
    places = indices.double().unsqueeze(1) * torch.tensor(_STEPS, dtype=torch.double)
    return torch.cat([upright, places.frac().float()], dim=1)


def _render(digits: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Put each digit on its canvas and normalize.

    ``draws`` holds, per digit, six numbers from 0 to 1: size, angle, column, row, and the slope
    of the background along columns and rows.
    """
    theta = _affine(*draws[:, :4].unbind(dim=1))
    grid = F.affine_grid(theta, [len(digits), 1, _CANVAS, _CANVAS], align_corners=False)
    ink = F.grid_sample(digits, grid, align_corners=False)
    canvas = ink + (1 - ink) * _background(draws[:, 4:], generator)
    return (canvas - MEAN) / STD


def _affine(size: Tensor, angle: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Return the maps from canvas to digit coordinates, both from -1 to 1, as (n, 2, 3)."""
    extent = (_SMALLEST + (_LARGEST - _SMALLEST) * size) / _CANVAS
    turn = (2 * angle - 1) * _STEEPEST
    rows = [turn.cos(), turn.sin(), -turn.sin(), turn.cos()]
    rotation = torch.stack(rows, dim=1).view(-1, 2, 2) / extent.view(-1, 1, 1)
    center = (2 * torch.stack([column, row], dim=1) - 1) * (1 - extent).unsqueeze(1)
    return torch.cat([rotation, -rotation @ center.unsqueeze(2)], dim=2)


def _background(slopes: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a dim, noisy brightness ramp, so that no two background tokens are equal."""
    ramp = torch.linspace(-1, 1, _CANVAS)
    across, down = (0.1 * slopes - 0.05).view(-1, 1, 2, 1).unbind(dim=2)
    noise = torch.rand(len(slopes), 1, _CANVAS, _CANVAS, generator=generator)
    return 0.1 + across.unsqueeze(2) * ramp + down.unsqueeze(2) * ramp.unsqueeze(1) + 0.08 * noise
