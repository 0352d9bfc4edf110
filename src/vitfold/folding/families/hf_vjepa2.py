"""Hugging Face's V-JEPA 2: rotary positions of three axes, which every layer computes from the
places of its tokens."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.common import Size
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_video import HFBiasless
from vitfold.folding.families.registry import register_family

VJEPA2 = "vjepa2.modeling_vjepa2."


@register_family
class HFVJEPA2(HFBiasless):
    """transformers' V-JEPA 2: its encoder folds. Predictor and attentive pooler read what that
    hands out, dense, and stay as they are."""

    models: ClassVar = {
        VJEPA2 + "VJEPA2Model": ("VJEPA2Model", "VJEPA2ForVideoClassification"),
    }
    path: ClassVar = "encoder.layer"
    norm: ClassVar = "encoder.layernorm"
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values_videos",
        "context_mask",
        "target_mask",
        "skip_predictor",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + VJEPA2 + "VJEPA2Layer",)
    block_arguments: ClassVar[tuple[str, ...]] = ("position_mask",)
    tuples: ClassVar = 2
    attention_types: ClassVar[tuple[str, ...]] = (HF + VJEPA2 + "VJEPA2RopeAttention",)
    prefix: Any = 0

    @property
    def frames(self) -> int:
        return int(self.config.frames_per_clip)

    @property
    def tubelet(self) -> Sequence[int]:
        return self.config.tubelet_size, self.config.patch_size, self.config.patch_size

    @property
    def size(self) -> Size:
        return int(self.config.in_chans), int(self.config.crop_size), int(self.config.crop_size)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.biased(block.attention, x, attend)
        out = attend(block.attention, block.norm1(x), position_mask=_places(x, attend), **bias)
        return block.drop_path(out) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.drop_path(block.mlp(block.norm2(x))) + x


def _places(x: Tensor, attend: Attend) -> Tensor | None:
    """`[B, n]`: where current tokens are, of which their rotary positions are made. A merged one
    keeps the place of the one it went into. None: they are the original ones."""
    places = torch.arange(attend.state.tokens, device=x.device).unsqueeze(-1)
    rows = attend.positions(places, places.new_zeros(()))
    return None if rows is places else rows.squeeze(1).squeeze(-1)
