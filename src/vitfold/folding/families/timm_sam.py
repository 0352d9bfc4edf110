"""timm's `VisionTransformerSAM`: SAM's and ViTDet's encoder."""

from typing import Any, ClassVar

from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block, BlockKind
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmEncoder
from vitfold.folding.families.windowed import RelativeWindowed

SAM = "timm.models.vision_transformer_sam."


@register_family
class TimmSam(RelativeWindowed, TimmEncoder):
    """timm's SAM encoder, whose neck and head read a dense map."""

    trunks: ClassVar[tuple[str, ...]] = (SAM + "VisionTransformerSAM",)
    block_types: ClassVar[tuple[str, ...]] = (SAM + "Block",)
    attention_types: ClassVar[tuple[str, ...]] = (SAM + "Attention",)

    def kind(self, block: Any) -> BlockKind | None:
        if isinstance(rope := getattr(block.attn, "rope", None), nn.Module):
            raise UnsupportedModel(
                f"VisionTransformerSAM cannot be folded with use_rope: its {type(rope).__name__} "
                "turns all places of a map"
            )
        return super().kind(block)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        out = self.attended(block, block.attn, block.norm1(x), attend)
        return x + block.drop_path1(block.ls1(out))

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
