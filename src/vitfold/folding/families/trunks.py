"""What a family has to say about its trunk: the module that owns the blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitfold.errors import FoldError, UnsupportedModel
from vitfold.folding.run import Run
from vitfold.tokens.layout import MANY

Grid = tuple[int, ...] | None
Size = tuple[int, int, int]
Arguments = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrunkKind:
    """One class of trunks, known by the full name of the class.

    blocks: the path to its list of blocks.
    entries: the methods that run the blocks.
    call: runs one of them: `(trunk, method, run, args, kwargs)`.
    width: how many channels tokens have.
    prefix: how many tokens of a sequence are not patches.
    class_token: whether the first of them stands for the image.
    reads_patches: whether what it reads out is made of patches.
    size: channels, height and width of the images that it is made for.
    arguments: names of what it is called with, in their order.
    grid: the patch grid for the arguments that it is called with, where there is one.
    example: arguments of the right shapes for a batch, on the trunk's device, by name.
    padding: `[B, patches]`, False for padded patches, where such arguments are given.
    """

    blocks: str
    entries: tuple[str, ...]
    call: Callable[[Any, str, Run, tuple[Any, ...], dict[str, Any]], Any]
    width: Callable[[Any], int]
    prefix: Callable[[Any], int]
    class_token: Callable[[Any], bool]
    reads_patches: Callable[[Any], bool]
    size: Callable[[Any], Size]
    arguments: tuple[str, ...]
    grid: Callable[[Any, Arguments], Grid]
    example: Callable[[Any, int], dict[str, Any]]
    padding: Callable[[Any, Arguments], Tensor | None]


def no_padding(_trunk: Any, _arguments: Arguments) -> Tensor | None:
    """Of a trunk whose images are never padded."""
    return None


def common_grid(shapes: Tensor) -> Grid:
    """The one that all images have, of `shapes[B, 2]`; else `MANY`."""
    if torch.compiler.is_compiling():
        return MANY
    if not len(shapes):
        return None
    alike = bool((shapes == shapes[:1]).all())
    return (int(shapes[0, 0]), int(shapes[0, 1])) if alike else MANY


def blank_images(trunk: Any, size: Size, batch: int) -> Tensor:
    """Images of zeros, where and how the trunk's weights are."""
    weight = next(trunk.parameters())
    return torch.zeros(batch, *size, device=weight.device, dtype=weight.dtype)


def with_prefix(valid: Tensor, prefix: int) -> Tensor:
    """`[B, prefix + N]` from `valid[B, N]`: no prefix token is padding."""
    return torch.cat([valid.new_ones(valid.shape[0], prefix), valid], dim=1)


def check_depth(trunk: Any, blocks: Sequence[Any], run: Run) -> None:
    """Refuse a trunk whose blocks are not those that were folded."""
    if len(blocks) != run.depth:
        raise FoldError(
            f"{type(trunk).__name__} has {len(blocks)} blocks and had {run.depth} when it was "
            "folded: unfold it before its blocks change"
        )


def check_ran(trunk: Any, run: Run) -> None:
    """Refuse a forward that went past the folded blocks."""
    if not run.states:
        raise UnsupportedModel(
            f"the forward of {type(trunk).__name__} does not run its own blocks: unfold it"
        )
