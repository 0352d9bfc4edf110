"""Hugging Face's InternVL and Qianfan-OCR: the vision towers."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, side_by_side
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family

INTERN = "internvl.modeling_internvl.InternVLVision"
QIANFAN = "qianfan_ocr.modeling_qianfan_ocr.QianfanOCRVision"


@register_family
class HFInternVL(HFFamily):
    """The vision tower of transformers' InternVL."""

    models: ClassVar = {
        INTERN + "Model": (
            "InternVLVisionModel",
            "InternVLModel",
            "InternVLForConditionalGeneration",
        )
    }
    readers: ClassVar = frozenset({"InternVLModel", "InternVLForConditionalGeneration"})
    hands_down: ClassVar = False
    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos")
    block_arguments: ClassVar[tuple[str, ...]] = ()
    block_types: ClassVar[tuple[str, ...]] = (HF + INTERN + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + INTERN + "Attention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return block.lambda_1 * out + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        out = block.dropout(block.mlp(block.layernorm_after(x)))
        return (out if block.lambda_2 is None else block.lambda_2 * out) + x

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        """Its norms see heads side by side."""
        name = f"{cue}_proj" if cue == "v" else f"{cue}_norm"
        show = side_by_side(show, attention.head_dim)
        return {name: showing(getattr(attention, name), show)}


@register_family
class HFQianfan(HFInternVL):
    """The vision tower of transformers' Qianfan-OCR."""

    models: ClassVar = {
        QIANFAN + "Model": (
            "QianfanOCRVisionModel",
            "QianfanOCRModel",
            "QianfanOCRForConditionalGeneration",
        )
    }
    readers: ClassVar = frozenset({"QianfanOCRModel", "QianfanOCRForConditionalGeneration"})
    hands_down: ClassVar = True
    path: ClassVar = "layers"
    block_types: ClassVar[tuple[str, ...]] = (HF + QIANFAN + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + QIANFAN + "Attention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return block.drop_path1(block.lambda_1 * out) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        out = block.dropout(block.mlp(block.layernorm_after(x)))
        return block.drop_path2(block.lambda_2 * out) + x
