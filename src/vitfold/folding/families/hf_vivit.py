"""Hugging Face's ViViT, whose tubelets attend over time and space at once."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_video import HFVideoFamily
from vitfold.folding.families.registry import register_family

VIVIT = "vivit.modeling_vivit."


@register_family
class HFVivit(HFVideoFamily):
    """transformers' ViViT, a vision transformer with a class token."""

    models: ClassVar = {VIVIT + "VivitModel": ("VivitModel", "VivitForVideoClassification")}
    path: ClassVar = "layers"
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + VIVIT + "VivitLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + VIVIT + "VivitAttention",)

    @property
    def tubelet(self) -> Sequence[int]:
        return tuple(self.config.tubelet_size)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return block.dropout(out) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.dropout(block.mlp(block.layernorm_after(x))) + x
