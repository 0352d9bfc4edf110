"""Hugging Face's VideoMAE."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.proxy import call
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_video import HFBiasless
from vitfold.folding.families.registry import register_family

VIDEOMAE = "videomae.modeling_videomae."


@register_family
class HFVideoMAE(HFBiasless):
    """transformers' VideoMAE: tubelets without a class token. The decoder of its pretraining reads
    dense tokens, and stays as it is."""

    models: ClassVar = {
        VIDEOMAE + "VideoMAEModel": (
            "VideoMAEModel",
            "VideoMAEForVideoClassification",
            "VideoMAEForPreTraining",
        )
    }
    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos")
    block_types: ClassVar[tuple[str, ...]] = (HF + VIDEOMAE + "VideoMAELayer",)
    block_arguments: ClassVar[tuple[str, ...]] = ()
    attention: ClassVar = "attention.attention"
    attention_types: ClassVar[tuple[str, ...]] = (HF + VIDEOMAE + "VideoMAESelfAttention",)
    prefix: Any = 0

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        inner = block.attention.attention
        bias = self.biased(inner, x, attend)

        def attention(y: Tensor, **_: Any) -> tuple[Tensor, None]:
            return attend(inner, y, **bias), None

        return call(block.attention, {"attention": attention}, block.layernorm_before(x)) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.output(block.intermediate(block.layernorm_after(x)), x)
