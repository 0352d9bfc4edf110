"""What a family has to say about its trunk: the module that owns the blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitfold.run import Run

Grid = tuple[int, int] | None
Size = tuple[int, int, int]
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Trunk:
    """One class of trunks, known by the full name of the class.

    library: who makes it.
    blocks: the path to its list of blocks.
    entries: the methods that run the blocks.
    call: runs one of them: `(trunk, method, run, args, kwargs)`.
    prefix: how many tokens of a sequence are not patches.
    size: channels, height and width of the images that it is made for.
    arguments: names of what it is called with, in their order.
    grid: the patch grid for the arguments that it is called with, where there is one.
    example: arguments of the right shapes for a batch, on the trunk's device, by name.
    padding: `[B, patches]`, False for padded patches, where such arguments are given.
    """

    library: str
    blocks: str
    entries: tuple[str, ...]
    call: Callable[[Any, str, Run, tuple[Any, ...], dict[str, Any]], Any]
    prefix: Callable[[Any], int]
    size: Callable[[Any], Size]
    arguments: tuple[str, ...]
    grid: Callable[[Any, Arguments], Grid]
    example: Callable[[Any, int], dict[str, Any]]
    padding: Callable[[Arguments], Tensor | None]


def no_padding(arguments: Arguments) -> Tensor | None:
    """Of a trunk whose images are never padded."""
    return None


def blank_images(trunk: Any, size: Size, batch: int) -> Tensor:
    """Images of zeros, where and how the trunk's weights are."""
    weight = next(trunk.parameters())
    return torch.zeros(batch, *size, device=weight.device, dtype=weight.dtype)
