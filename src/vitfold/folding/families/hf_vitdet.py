"""Hugging Face's VitDet, as a model and as a backbone."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.windowed import RelativeWindowed
from vitfold.tokens.regions import MapFirst, Regions

VITDET = "vitdet.modeling_vitdet.VitDet"


@register_family
class HFVitDet(RelativeWindowed, HFFamily):
    """transformers' VitDet, whose layers take maps with channels first; behind some of them come
    convolutions, over all tokens."""

    models: ClassVar = {
        VITDET + "Model": ("VitDetModel",),
        VITDET + "Backbone": ("VitDetBackbone",),
    }
    hands_down: ClassVar = False
    path: ClassVar = "encoder.layer"
    block_arguments: ClassVar[tuple[str, ...]] = ("output_attentions",)
    tuples: ClassVar = 1
    block_types: ClassVar[tuple[str, ...]] = (HF + VITDET + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + VITDET + "Attention",)

    def regions(self, block: Any) -> Regions:
        return MapFirst(int(block.window_size))

    def behind(self, block: Any, x: Tensor) -> Tensor:
        return block.residual(x) if block.use_residual_block else x

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        out = self.attended(block, block.attention, block.norm1(x), attend)
        return x + block.drop_path(out)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.drop_path(block.mlp(block.norm2(x)))

    def tables(self, attention: Any) -> tuple[Tensor, Tensor] | None:
        counted = attention.use_relative_position_embeddings
        return (attention.rel_pos_h, attention.rel_pos_w) if counted else None
