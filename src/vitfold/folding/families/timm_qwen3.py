"""timm's `Qwen3VitEncoder`, alone or in a classifier."""

from typing import ClassVar

from torch import nn

from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import maker
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmEncoder
from vitfold.folding.families.timm_eva import HALVES, ROTARY

QWEN3 = "timm.models.qwen3_vit."


@register_family
class TimmQwen3(TimmEncoder):
    """timm's Qwen3 encoder, whose blocks are those of EVA. Its merger, which joins neighbours on
    the grid, reads dense patches."""

    trunks: ClassVar[tuple[str, ...]] = (QWEN3 + "Qwen3VitEncoder",)
    hosts: ClassVar[tuple[str, ...]] = (QWEN3 + "Qwen3VitClassifier",)
    attention_types: ClassVar[tuple[str, ...]] = ("timm.layers.attention.AttentionRope",)

    def kind(self, block: nn.Module) -> BlockKind | None:
        halves = HALVES.get(maker(type(block)))
        return BlockKind(self, *halves, ROTARY) if halves else None
