"""Hugging Face's RF-DETR and LW-DETR: backbones whose windows come as a batch, and that attend over
all of an image in some layers."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.windowed import Windowed
from vitfold.tokens.layout import Grid
from vitfold.tokens.regions import Batched, Regions

RF = "rf_detr.modeling_rf_detr.RfDetr"
LW = "lw_detr.modeling_lw_detr.LwDetr"


@register_family
class HFLwDetr(Windowed, HFFamily):
    """transformers' LW-DETR: its backbone folds, and detection reads its dense maps."""

    models: ClassVar = {
        LW + "ViTBackbone": ("LwDetrViTBackbone", "LwDetrModel", "LwDetrForObjectDetection")
    }
    path: ClassVar = "encoder.layer"
    block_types: ClassVar[tuple[str, ...]] = (HF + LW + "ViTLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + LW + "ViTAttention",)

    def regions(self, block: Any) -> Regions:
        return Batched(int(self.config.num_windows_side), 0, not block.window)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return x + out * block.gamma_1

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.intermediate(block.layernorm_after(x)) * block.gamma_2


@register_family
class HFRfDetr(Windowed, HFFamily):
    """transformers' RF-DETR: its backbone is a DINOv2 that has a class token in every window."""

    models: ClassVar = {
        RF + "Dinov2Backbone": (
            "RfDetrDinov2Backbone",
            "RfDetrModel",
            "RfDetrForObjectDetection",
            "RfDetrForInstanceSegmentation",
        )
    }
    path: ClassVar = "encoder.layer"
    block_types: ClassVar[tuple[str, ...]] = (HF + RF + "Dinov2Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + RF + "Dinov2Attention",)

    @property
    def prefix(self) -> int:
        return int(self.config.num_windows) ** 2

    def regions(self, block: Any) -> Regions:
        return Turned(int(self.config.num_windows), 1, bool(block.global_attention))

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.norm1(x), attention_mask=bias)
        return block.drop_path(block.layer_scale1(out)) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


class Turned(Batched):
    """Windows that are cut as if the sides of the grid were the other way round."""

    def cells(self, order: Tensor, grid: Grid) -> Tensor:
        return super().cells(order, grid[::-1])
