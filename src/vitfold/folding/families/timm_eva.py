"""timm's `Eva`: EVA, EVA-02, ViTs with rotary positions, DINOv3, the perception encoder."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import capture, showing, third
from vitfold.folding.blocks.kinds import Block, BlockKind
from vitfold.folding.blocks.names import maker
from vitfold.folding.families.common import Arguments
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmFamily
from vitfold.folding.families.timm_vit import hidden, post_norm_feed

EVA = "timm.models.eva."

ROTARY = ("rope", "attn_mask", "is_causal")


def eva_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    """The first half of a pre-norm block with rotary positions."""
    out = attend(b.attn, b.norm1(x), rope=attend.rope(), attn_mask=attend.bias(x))
    return x + b.drop_path1(out if b.gamma_1 is None else b.gamma_1 * out)


def gamma_feed(b: Block, x: Tensor) -> Tensor:
    """The second half of a block whose layer scale is a weight of its own."""
    out = b.mlp(b.norm2(x))
    return x + b.drop_path2(out if b.gamma_2 is None else b.gamma_2 * out)


def _post_norm_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, x, rope=attend.rope(), attn_mask=attend.bias(x))
    return x + b.drop_path1(b.norm1(out))


def capture_beside_bias(attention: Any, cue: str, show: Callable[[Tensor], None]) -> dict[str, Any]:
    """What shows a cue of a fused projection whose bias lies in separate tensors."""
    if not hasattr(attention, "q_bias") or hasattr(attention, f"{cue}_norm"):
        return capture(attention, cue, show)
    if getattr(attention, f"{cue}_proj", None) is not None:
        return capture(attention, cue, show)
    project = showing(_with_bias(attention), third(cue, attention.num_heads, show))
    return {"qkv": project, "q_bias": None}


def _with_bias(attention: Any) -> Callable[[Tensor], Tensor]:
    qkv: nn.Linear = attention.qkv
    if attention.q_bias is None:
        return qkv

    def project(x: Tensor) -> Tensor:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        if attention.qkv_bias_separate:
            return qkv(x) + bias
        return F.linear(x, qkv.weight, bias)

    return project


HALVES = {
    EVA + "EvaBlock": (eva_attend, gamma_feed),
    EVA + "EvaBlockPostNorm": (_post_norm_attend, post_norm_feed),
}


@register_family
class TimmEva(TimmFamily):
    """timm's vision transformers with rotary positions."""

    trunks: ClassVar[tuple[str, ...]] = (EVA + "Eva",)
    readers: ClassVar = frozenset({EVA + "Eva"})
    arguments: ClassVar[tuple[str, ...]] = ("x", "attn_mask")
    attention_types: ClassVar[tuple[str, ...]] = (
        EVA + "EvaAttention",
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
    )

    def padding(self, arguments: Arguments) -> Tensor | None:
        return hidden(self, arguments)

    def kind(self, block: nn.Module) -> BlockKind | None:
        halves = HALVES.get(maker(type(block)))
        return BlockKind(self, *halves, ROTARY) if halves else None

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        return capture_beside_bias(attention, cue, show)
