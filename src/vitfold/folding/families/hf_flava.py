"""Hugging Face's FLAVA: the image encoder, whose layers hand out tuples."""

from typing import ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.biasless import Separate
from vitfold.folding.families.hf import HF
from vitfold.folding.families.registry import register_family

FLAVA = "flava.modeling_flava.Flava"


@register_family
class HFFlava(Separate):
    """The image encoder of transformers' FLAVA."""

    models: ClassVar = {
        FLAVA + "ImageModel": ("FlavaImageModel", "FlavaModel", "FlavaForPreTraining")
    }
    readers: ClassVar = frozenset({"FlavaModel", "FlavaForPreTraining"})
    hands_down: ClassVar = False
    tuples: ClassVar = 1
    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "bool_masked_pos",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + FLAVA + "Layer",)
    attention: ClassVar = "attention.attention"
    attention_types: ClassVar[tuple[str, ...]] = (HF + FLAVA + "SelfAttention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        normed = block.layernorm_before(x)
        out = self.attended(block.attention.attention, normed, attend)
        return block.attention.output(out, normed) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.output(block.intermediate(block.layernorm_after(x)), x)
