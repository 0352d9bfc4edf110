"""timm's `Gemma4VitEncoder`, alone or in a classifier: images, or patches that say their places."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import normed, showing
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.common import Arguments, Grid, common_grid
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmEncoder

GEMMA4 = "timm.models.gemma4_vit."


@register_family
class TimmGemma4(TimmEncoder):
    """timm's Gemma 4 encoder. What pools its patches by their places on the grid reads dense
    ones."""

    trunks: ClassVar[tuple[str, ...]] = (GEMMA4 + "Gemma4VitEncoder",)
    hosts: ClassVar[tuple[str, ...]] = (GEMMA4 + "Gemma4VitClassifier",)
    arguments: ClassVar[tuple[str, ...]] = ("x", "patch_coord", "patch_valid")
    block_types: ClassVar[tuple[str, ...]] = (GEMMA4 + "Gemma4Block",)
    block_arguments: ClassVar[tuple[str, ...]] = ("rope_cos", "rope_sin", "attn_mask")
    attention_types: ClassVar[tuple[str, ...]] = (GEMMA4 + "Gemma4Attention",)

    # The trunk

    def grid(self, arguments: Arguments) -> Grid:
        images = self.images(arguments)
        if images is not None:
            height, width = self.trunk.patch_size
            return int(images.shape[-2]) // height, int(images.shape[-1]) // width
        places = _patches(arguments).get("patch_coord")
        if not isinstance(places, Tensor) or not places.shape[1]:
            return None
        return common_grid(places.amax(dim=1) + 1)

    def padding(self, arguments: Arguments) -> Tensor | None:
        patches = _patches(arguments)
        valid, places = patches.get("patch_valid"), patches.get("patch_coord")
        if valid is None and places is not None:
            valid = (places != -1).any(dim=-1)
        return None if valid is None else valid.bool()

    # Blocks

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        tables = {
            "rope_cos": _rows(attend, "rope_cos", torch.ones),
            "rope_sin": _rows(attend, "rope_sin", torch.zeros),
        }
        out = attend(block.attn, block.norm1(x), attn_mask=attend.bias(x), **tables)
        return x + block.drop_path(block.norm2(out))

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.drop_path(block.norm4(block.mlp(block.norm3(x))))

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        """It norms queries, keys and values before the heads move in front of the tokens."""
        norm = f"{cue}_norm"
        return {norm: showing(getattr(attention, norm), normed(show, heads_last=True))}


def _patches(arguments: Arguments) -> Arguments:
    """What is said of patches that came by name, or in one piece."""
    inner = arguments.get("x")
    return inner if isinstance(inner, dict) else arguments


def _rows(attend: Attend, name: str, still: Callable[..., Tensor]) -> Tensor:
    """`[B, n, d]`: the rows of a rotary table `[B, N, d]`, for the current tokens."""
    table: Tensor = attend.arguments[name].unsqueeze(1)
    return attend.positions(table, still((), dtype=table.dtype, device=table.device)).squeeze(1)
