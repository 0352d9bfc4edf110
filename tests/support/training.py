"""What small trainings learn from."""

import torch
from torch import Tensor


class Blobs:
    """Images whose class shows in their mean, with noise that only the seed decides."""

    def __init__(self, images: int = 24, classes: int = 3) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % self.classes
        return torch.randn(3, 32, 32) * 0.5 + label, label
