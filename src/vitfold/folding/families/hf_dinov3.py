"""Hugging Face's DINOv3 and Sapiens2: rotary positions, handed to every layer as two tables."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.hf_dinov2 import HFDinov2
from vitfold.folding.families.registry import register_family

DINOV3 = "dinov3_vit.modeling_dinov3_vit."
SAPIENS = "sapiens2.modeling_sapiens2.Sapiens2"


@register_family
class HFDinov3(HFDinov2):
    """transformers' DINOv3."""

    models: ClassVar = {
        DINOV3 + "DINOv3ViTModel": ("DINOv3ViTModel",),
        DINOV3 + "DINOv3ViTBackbone": ("DINOv3ViTBackbone",),
    }
    readers: ClassVar = frozenset()
    path: ClassVar = "model.layer"
    arguments: ClassVar[tuple[str, ...]] = HFFamily.arguments
    block_types: ClassVar[tuple[str, ...]] = (HF + DINOV3 + "DINOv3ViTLayer",)
    block_arguments: ClassVar[tuple[str, ...]] = ("attention_mask", "position_embeddings")
    attention_types: ClassVar[tuple[str, ...]] = (HF + DINOV3 + "DINOv3ViTAttention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        positions = _positions(attend)
        out = attend(block.attention, block.norm1(x), attention_mask=bias, **positions)
        return block.drop_path(block.layer_scale1(out)) + x


@register_family
class HFSapiens2(HFDinov3):
    """transformers' Sapiens2, as a model and as a backbone."""

    models: ClassVar = {
        SAPIENS + "Model": (
            "Sapiens2Model",
            "Sapiens2ForSemanticSegmentation",
            "Sapiens2ForPoseEstimation",
            "Sapiens2ForNormalEstimation",
            "Sapiens2ForPointmapEstimation",
            "Sapiens2ForImageMatting",
        ),
        SAPIENS + "Backbone": ("Sapiens2Backbone",),
    }
    resizes: ClassVar[bool] = False
    readers: ClassVar = frozenset(models[SAPIENS + "Model"][1:])
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos")
    block_types: ClassVar[tuple[str, ...]] = (HF + SAPIENS + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + SAPIENS + "Attention",)


def _positions(attend: Attend) -> dict[str, Any]:
    tables = attend.arguments.get("position_embeddings")
    if tables is None:
        return {}
    cosine, sine = tables
    one, zero = cosine.new_ones(()), sine.new_zeros(())
    return {"position_embeddings": (attend.positions(cosine, one), attend.positions(sine, zero))}
