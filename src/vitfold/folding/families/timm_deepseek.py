"""timm's `DeepseekVitEncoder`, alone or in a classifier."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.proxy import Whole
from vitfold.folding.families.common import filling
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmEncoder
from vitfold.folding.run import Run

DEEPSEEK = "timm.models.deepseek_vit."


@register_family
class TimmDeepseek(TimmEncoder):
    """timm's DeepSeek encoder. Its aligner, which joins neighbours on the grid, reads dense
    patches."""

    trunks: ClassVar[tuple[str, ...]] = (DEEPSEEK + "DeepseekVitEncoder",)
    hosts: ClassVar[tuple[str, ...]] = (DEEPSEEK + "DeepseekVitClassifier",)
    block_types: ClassVar[tuple[str, ...]] = (DEEPSEEK + "DeepseekVitBlock",)
    block_arguments: ClassVar[tuple[str, ...]] = ("rope",)
    attention_types: ClassVar[tuple[str, ...]] = ("timm.layers.attention.AttentionRope",)

    def proxy(self, run: Run, **overrides: Any) -> Whole:
        return super().proxy(run, norm=filling(run, self.trunk.norm), **overrides)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        out = attend(block.attn, block.norm1(x), rope=attend.rope(), attn_mask=attend.bias(x))
        return x + block.drop_path1(out)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.mlp(block.norm2(x)))
