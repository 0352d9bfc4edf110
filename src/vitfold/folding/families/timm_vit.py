"""timm's `VisionTransformer`: ViT, DeiT, DINOv2, CLIP, SigLIP, AIMv2, ViTamin, hybrids and the
like, with blocks of five kinds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import capture, normed, showing, third
from vitfold.folding.blocks.kinds import Block, BlockKind
from vitfold.folding.blocks.names import maker
from vitfold.folding.families.common import Arguments
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmFamily
from vitfold.tokens.state import four

VIT = "timm.models.vision_transformer."

PARALLEL = (VIT + "ParallelScalingBlock", VIT + "DiffParallelScalingBlock")
"""Blocks that attend and feed forward in one, and are their own attention."""

MASKED = ("attn_mask", "is_causal")


def vit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    """The first half of a pre-norm block."""
    out = attend(b.attn, b.norm1(x), attn_mask=attend.bias(x))
    return x + b.drop_path1(b.ls1(out))


def vit_feed(b: Block, x: Tensor) -> Tensor:
    """The second half of a pre-norm block with layer scale."""
    return x + b.drop_path2(b.ls2(b.mlp(b.norm2(x))))


def post_norm_feed(b: Block, x: Tensor) -> Tensor:
    """The second half of a block that normalizes what it adds."""
    return x + b.drop_path2(b.norm2(b.mlp(x)))


def _post_norm_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, x, attn_mask=attend.bias(x))
    return x + b.drop_path1(b.norm1(out))


def _things_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = attend.bias(x)
    out = [a.drop_path(a.ls(attend(a.attn, a.norm(x), attn_mask=bias))) for a in b.attns]
    return x + torch.stack(out).sum(dim=0)


def _things_feed(b: Block, x: Tensor) -> Tensor:
    return x + torch.stack([ffn(x) for ffn in b.ffns]).sum(dim=0)


def _parallel_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    return attend.whole(b, x, attn_mask=attend.bias(x))


HALVES = {
    VIT + "Block": (vit_attend, vit_feed),
    VIT + "ResPostBlock": (_post_norm_attend, post_norm_feed),
    VIT + "ParallelThingsBlock": (_things_attend, _things_feed),
    **dict.fromkeys(PARALLEL, (_parallel_attend, None)),
}


def hidden(family: TimmFamily, arguments: Arguments) -> Tensor | None:
    """`[B, patches]`: patches that a mask hides from all tokens are padding, unless they are read
    out."""
    mask, images = arguments.get("attn_mask"), family.images(arguments)
    if not isinstance(mask, Tensor) or images is None or family.reads_patches:
        return None
    visible = four(mask if mask.dtype == torch.bool else mask > float("-inf")).any(dim=2).any(dim=1)
    return visible[:, family.prefix :].expand(images.shape[0], -1)


@register_family
class TimmVisionTransformer(TimmFamily):
    """timm's vision transformers with global attention and absolute positions."""

    trunks: ClassVar[tuple[str, ...]] = (VIT + "VisionTransformer",)
    readers: ClassVar = frozenset(
        {VIT + "VisionTransformer", "timm.models.deit.VisionTransformerDistilled"}
    )
    arguments: ClassVar[tuple[str, ...]] = ("x", "attn_mask")
    attention_types: ClassVar[tuple[str, ...]] = (
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
        "timm.layers.diff_attention.DiffAttention",
        VIT + "Attention",  # its place in timm before 1.0.17
        *PARALLEL,
    )

    def padding(self, arguments: Arguments) -> Tensor | None:
        return hidden(self, arguments)

    def kind(self, block: nn.Module) -> BlockKind | None:
        halves = HALVES.get(maker(type(block)))
        return BlockKind(self, *halves, MASKED) if halves else None

    def attentions(self, block: Block) -> Sequence[nn.Module]:
        if hasattr(block, "attns"):
            return [branch.attn for branch in block.attns]
        return [block] if maker(type(block)) in PARALLEL else [block.attn]

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        norm = f"{cue}_norm"
        if "in_proj" not in attention._modules:
            return capture(attention, cue, show)
        if not hasattr(attention, norm):
            # MLP, queries, keys and values in one projection.
            width = sum(attention.in_split[1:])
            own = third(cue, attention.num_heads, show)
            return {"in_proj": showing(attention.in_proj, lambda y: own(y[..., -width:]))}
        # One of them norms queries and keys before the heads move in front of the tokens.
        heads_last = maker(type(attention)) == PARALLEL[0]
        return {norm: showing(getattr(attention, norm), normed(show, heads_last))}
