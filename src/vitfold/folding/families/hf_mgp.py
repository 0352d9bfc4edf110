"""Hugging Face's MGP-STR: a ViT that reads words in images, whose attention takes no bias."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.biasless import Joint, joined
from vitfold.folding.families.hf import HF
from vitfold.folding.families.registry import register_family

MGP = "mgp_str.modeling_mgp_str.Mgpstr"


@register_family
class HFMGP(Joint):
    """transformers' MGP-STR."""

    models: ClassVar = {MGP + "Model": ("MgpstrModel", "MgpstrForSceneTextRecognition")}
    readers: ClassVar = frozenset({"MgpstrForSceneTextRecognition"})
    hands_down: ClassVar = False
    tuples: ClassVar = 2
    path: ClassVar = "encoder.blocks"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)
    block_types: ClassVar[tuple[str, ...]] = (HF + MGP + "Layer",)
    block_arguments: ClassVar[tuple[str, ...]] = ()
    attention: ClassVar = "attn"
    attention_types: ClassVar[tuple[str, ...]] = (HF + MGP + "Attention",)

    @staticmethod
    def biased(attention: Any, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = attention.proj_drop(attention.proj(joined(attention, x, attention_mask)))
        return out

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        return block.drop_path(self.attended(block.attn, block.norm1(x), attend)) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.drop_path(block.mlp(block.norm2(x)))
