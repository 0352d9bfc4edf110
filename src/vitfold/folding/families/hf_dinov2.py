"""Hugging Face's DINOv2, with and without registers, TIPSv2 and RADIO, which have its layers: as
models and as backbones."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.common import Arguments, Grid, common_grid
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family
from vitfold.tokens.state import TokenState

DINOV2 = "dinov2.modeling_dinov2."
REGISTERS = "dinov2_with_registers.modeling_dinov2_with_registers."
TIPS = "tipsv2.modeling_tipsv2.Tipsv2Vision"
RADIO = "radio.modeling_radio.Radio"


@register_family
class HFDinov2(HFFamily):
    """transformers' DINOv2."""

    models: ClassVar = {
        DINOV2 + "Dinov2Model": ("Dinov2Model", "Dinov2ForImageClassification"),
        REGISTERS + "Dinov2WithRegistersModel": (
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersForImageClassification",
        ),
        TIPS + "Model": ("Tipsv2VisionModel", "Tipsv2Model"),
    }
    readers: ClassVar = frozenset(
        {"Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"}
    )
    resizes: ClassVar[bool] = True
    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos", "attention_mask")
    block_types: ClassVar[tuple[str, ...]] = (
        HF + DINOV2 + "Dinov2Layer",
        HF + REGISTERS + "Dinov2WithRegistersLayer",
        HF + TIPS + "Layer",
    )
    attention_types: ClassVar[tuple[str, ...]] = (
        HF + DINOV2 + "Dinov2Attention",
        HF + REGISTERS + "Dinov2WithRegistersAttention",
        HF + TIPS + "Attention",
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
        TIPS + "Backbone": ("Tipsv2VisionBackbone",),
    }
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "attention_mask")


@register_family
class HFRadio(HFDinov2):
    """transformers' RADIO: several class tokens and registers; images of several sizes come one
    after another."""

    models: ClassVar = {RADIO + "Model": ("RadioModel",)}
    readers: ClassVar = frozenset()
    resizes: ClassVar[bool] = False
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "image_grid_hw")
    block_types: ClassVar[tuple[str, ...]] = (HF + RADIO + "Layer",)
    block_arguments: ClassVar[tuple[str, ...]] = ("attention_mask", "cu_seqlens")
    attention_types: ClassVar[tuple[str, ...]] = (HF + RADIO + "Attention",)

    @property
    def prefix(self) -> int:
        return int(self.config.num_summary_tokens)

    def grid(self, arguments: Arguments) -> Grid:
        shapes = arguments.get("image_grid_hw")
        return super().grid(arguments) if shapes is None else common_grid(shapes)

    def lengths(self, arguments: Arguments) -> Sequence[int] | None:
        shapes = arguments.get("image_grid_hw")
        return None if shapes is None else [self.prefix + h * w for h, w in shapes.tolist()]

    def read_again(self, outputs: Any, state: TokenState) -> Any:
        """Nothing: no norm comes behind the last layer."""
        return outputs
