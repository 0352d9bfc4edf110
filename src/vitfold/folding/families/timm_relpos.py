"""timm's `VisionTransformerRelPos`: a relative position bias, of every block or of all of them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block, BlockKind
from vitfold.folding.blocks.names import maker
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmFamily
from vitfold.folding.families.timm_vit import post_norm_feed, vit_feed

RELPOS = "timm.models.vision_transformer_relpos."

SHARED = "shared_rel_pos"


def _attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, b.norm1(x), shared_rel_pos=attend.bias(x, SHARED))
    return x + b.drop_path1(b.ls1(out))


def _post_norm_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, x, shared_rel_pos=attend.bias(x, SHARED))
    return x + b.drop_path1(b.norm1(out))


HALVES = {
    RELPOS + "RelPosBlock": (_attend, vit_feed),
    RELPOS + "ResPostRelPosBlock": (_post_norm_attend, post_norm_feed),
}


@register_family
class TimmRelPos(TimmFamily):
    """timm's vision transformers with relative positions."""

    trunks: ClassVar[tuple[str, ...]] = (RELPOS + "VisionTransformerRelPos",)
    readers: ClassVar = frozenset({RELPOS + "VisionTransformerRelPos"})
    attention_types: ClassVar[tuple[str, ...]] = (RELPOS + "RelPosAttention",)

    def kind(self, block: nn.Module) -> BlockKind | None:
        halves = HALVES.get(maker(type(block)))
        return BlockKind(self, *halves, (SHARED,)) if halves else None

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        if attention.rel_pos is None:
            return {}
        return {"rel_pos": _Bias(attend.join(attention.rel_pos.get_bias(), x))}


class _Bias:
    """A relative position bias that is computed already, with the interface of timm's module."""

    def __init__(self, bias: Tensor | None) -> None:
        self.bias = bias

    def get_bias(self) -> Tensor | None:
        return self.bias

    def __call__(self, logits: Tensor, **_: Tensor | None) -> Tensor:
        return logits if self.bias is None else logits + self.bias
