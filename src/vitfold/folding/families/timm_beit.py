"""timm's `Beit`: BEiT and BEiT v2, with relative positions of every block or of all of them."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmFamily
from vitfold.folding.families.timm_eva import capture_beside_bias, gamma_feed

BEIT = "timm.models.beit."


@register_family
class TimmBeit(TimmFamily):
    """timm's BEiT and BEiT v2."""

    trunks: ClassVar[tuple[str, ...]] = (BEIT + "Beit",)
    readers: ClassVar = frozenset({BEIT + "Beit"})
    block_types: ClassVar[tuple[str, ...]] = (BEIT + "Block",)
    block_arguments: ClassVar[tuple[str, ...]] = ("shared_rel_pos_bias",)
    attention_types: ClassVar[tuple[str, ...]] = (BEIT + "Attention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = attend.bias(x, "shared_rel_pos_bias")
        out = attend(block.attn, block.norm1(x), shared_rel_pos_bias=bias)
        return x + block.drop_path1(out if block.gamma_1 is None else block.gamma_1 * out)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return gamma_feed(block, x)

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        return capture_beside_bias(attention, cue, show)

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        if attention.relative_position_bias_table is None:
            return {}
        bias = attend.state.mask(attention._get_rel_pos_bias(), x.dtype)
        return {"_get_rel_pos_bias": lambda: bias}
