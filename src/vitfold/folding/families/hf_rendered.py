"""Hugging Face's Kosmos-2.5 and Pix2Struct: encoders of rows of patches that say where they come
from, and are padded."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.biasless import of_part, separated
from vitfold.folding.families.common import Arguments, Grid, Size, common_grid
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family

KOSMOS = "kosmos2_5.modeling_kosmos2_5.Kosmos2_5"
PIX2STRUCT = "pix2struct.modeling_pix2struct.Pix2Struct"

PATCHES = "flattened_patches"

CHANNELS = 3

SIDE = 16
"""Rows and columns of an example: what these models see has no size of its own."""


class Rendered(HFFamily):
    """Base of encoders of flattened patches."""

    arguments: ClassVar[tuple[str, ...]] = (PATCHES, "attention_mask")
    attention: ClassVar = "attention"
    path: ClassVar = "encoder.layer"
    prefix: Any = 0

    @property
    def size(self) -> Size:
        side = SIDE * math.isqrt(int(self.config.patch_embed_hidden_size) // CHANNELS)
        return CHANNELS, side, side

    def grid(self, arguments: Arguments) -> Grid:
        """Rows and columns count from one; padding has none."""
        patches = arguments.get(PATCHES)
        return None if patches is None else common_grid(patches[:, :, :2].amax(dim=1).long())

    def padding(self, arguments: Arguments) -> Tensor | None:
        mask, patches = arguments.get("attention_mask"), arguments.get(PATCHES)
        if mask is not None or patches is None:
            return None if mask is None else mask.bool()
        return patches.sum(dim=-1) != 0

    def example(self, batch: int = 1) -> dict[str, Any]:
        weight = next(self.trunk.parameters())
        rows = torch.arange(SIDE, device=weight.device, dtype=weight.dtype) + 1
        pixels = weight.new_zeros(SIDE**2, int(self.config.patch_embed_hidden_size))
        patches = torch.cat([torch.cartesian_prod(rows, rows), pixels], dim=1)
        return {PATCHES: patches.expand(batch, -1, -1).contiguous()}

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        normed = block.pre_attention_layer_norm(x)
        return attend(block.attention, normed, attention_mask=bias) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.mlp(block.pre_mlp_layer_norm(x)) + x

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        return of_part(attention, cue, show, attention.inner_dim // attention.n_heads)


@register_family
class HFKosmos25(Rendered):
    """The vision encoder of transformers' Kosmos-2.5."""

    models: ClassVar = {
        KOSMOS + "VisionModel": ("Kosmos2_5Model", "Kosmos2_5ForConditionalGeneration")
    }
    block_types: ClassVar[tuple[str, ...]] = (HF + KOSMOS + "VisionLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + KOSMOS + "VisionAttention",)

    def fused(self, attention: Any) -> Mapping[str, Any]:
        """It never asks for torch's attention, whatever it is set to."""
        return {"forward": _fused}


def _fused(attention: Any, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    out: Tensor = attention.output(separated(attention, x, attention.head_dim, attention_mask))
    return out


@register_family
class HFPix2Struct(Rendered):
    """The vision encoder of transformers' Pix2Struct."""

    models: ClassVar = {
        PIX2STRUCT + "VisionModel": (
            "Pix2StructVisionModel",
            "Pix2StructForConditionalGeneration",
        )
    }
    hands_down: ClassVar = False
    tuples: ClassVar = 2
    block_types: ClassVar[tuple[str, ...]] = (HF + PIX2STRUCT + "VisionLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + PIX2STRUCT + "VisionAttention",)
