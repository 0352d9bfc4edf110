"""Hugging Face's CLIP and SigLIP: the vision towers."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family


@register_family
class HFClip(HFFamily):
    """The vision tower of transformers' CLIP."""

    models: ClassVar = {
        "clip.modeling_clip.CLIPVisionModel": (
            "CLIPVisionModel",
            "CLIPVisionModelWithProjection",
            "CLIPModel",
            "CLIPForImageClassification",
        )
    }
    readers: ClassVar = frozenset({"CLIPForImageClassification"})
    path: ClassVar = "encoder.layers"
    attention: ClassVar = "self_attn"
    block_types: ClassVar[tuple[str, ...]] = (HF + "clip.modeling_clip.CLIPEncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "clip.modeling_clip.CLIPAttention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.self_attn, x, attend)
        return x + attend(block.self_attn, block.layer_norm1(x), attention_mask=bias)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))


@register_family
class HFSiglip(HFClip):
    """The vision tower of transformers' SigLIP: no token but patches, pooled by attention."""

    models: ClassVar = {
        "siglip.modeling_siglip.SiglipVisionModel": (
            "SiglipVisionModel",
            "SiglipModel",
            "SiglipForImageClassification",
        )
    }
    readers: ClassVar = frozenset()
    block_types: ClassVar[tuple[str, ...]] = (HF + "siglip.modeling_siglip.SiglipEncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "siglip.modeling_siglip.SiglipAttention",)
    prefix: Any = 0
