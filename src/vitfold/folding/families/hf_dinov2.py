"""Hugging Face's DINOv2, with and without registers, as a model and as a backbone."""

from typing import ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family

DINOV2 = "dinov2.modeling_dinov2."
REGISTERS = "dinov2_with_registers.modeling_dinov2_with_registers."


@register_family
class HFDinov2(HFFamily):
    """transformers' DINOv2."""

    models: ClassVar = {
        DINOV2 + "Dinov2Model": ("Dinov2Model", "Dinov2ForImageClassification"),
        REGISTERS + "Dinov2WithRegistersModel": (
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersForImageClassification",
        ),
    }
    readers: ClassVar = frozenset(
        {"Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"}
    )
    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos", "attention_mask")
    block_types: ClassVar[tuple[str, ...]] = (
        HF + DINOV2 + "Dinov2Layer",
        HF + REGISTERS + "Dinov2WithRegistersLayer",
    )
    attention_types: ClassVar[tuple[str, ...]] = (
        HF + DINOV2 + "Dinov2Attention",
        HF + REGISTERS + "Dinov2WithRegistersAttention",
    )

    @property
    def prefix(self) -> int:
        return 1 + int(getattr(self.config, "num_register_tokens", 0))

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.norm1(x), attention_mask=bias)
        return block.drop_path(block.layer_scale1(out)) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


@register_family
class HFDinov2Backbone(HFDinov2):
    """transformers' DINOv2 as a backbone, which returns feature maps of its layers."""

    models: ClassVar = {
        DINOV2 + "Dinov2Backbone": ("Dinov2Backbone",),
        REGISTERS + "Dinov2WithRegistersBackbone": ("Dinov2WithRegistersBackbone",),
    }
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "attention_mask")
