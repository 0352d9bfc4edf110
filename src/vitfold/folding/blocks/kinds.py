"""What the blocks of every family do, in two halves; tokens are reduced between them.

A kind of block is known by its class. `attend` runs the first half on the residual stream,
`feed` the second; a block whose attention and MLP run in parallel has no middle, and is reduced
after it. Each half is the block's own two lines, so that all that hangs in them (LayerScale,
DropPath, gates, post-norm) stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend

Block = Any


@dataclass(frozen=True)
class BlockKind:
    """One class of blocks.

    attend: the first half: from the residual stream to the residual stream.
    feed: the second half, or None where there is only one.
    arguments: names of what the block takes besides its tokens, in their order.
    attentions: the modules of a block that attend.
    """

    attend: Callable[[Block, Tensor, Attend], Tensor]
    feed: Callable[[Block, Tensor], Tensor] | None
    arguments: tuple[str, ...]
    attentions: Callable[[Block], Sequence[nn.Module]]


MASKED = ("attn_mask", "is_causal")
ROTARY = ("rope", "attn_mask", "is_causal")


def _vit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, b.norm1(x), attn_mask=attend.bias(x))
    return x + b.drop_path1(b.ls1(out))


def _vit_feed(b: Block, x: Tensor) -> Tensor:
    return x + b.drop_path2(b.ls2(b.mlp(b.norm2(x))))


def _post_norm_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, x, attn_mask=attend.bias(x))
    return x + b.drop_path1(b.norm1(out))


def _post_norm_feed(b: Block, x: Tensor) -> Tensor:
    return x + b.drop_path2(b.norm2(b.mlp(x)))


def _things_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = attend.bias(x)
    out = [a.drop_path(a.ls(attend(a.attn, a.norm(x), attn_mask=bias))) for a in b.attns]
    return x + torch.stack(out).sum(dim=0)


def _things_feed(b: Block, x: Tensor) -> Tensor:
    return x + torch.stack([ffn(x) for ffn in b.ffns]).sum(dim=0)


def _parallel_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    return attend.whole(b, x, attn_mask=attend.bias(x))


def _eva_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, b.norm1(x), rope=attend.rope(), attn_mask=attend.bias(x))
    return x + b.drop_path1(out if b.gamma_1 is None else b.gamma_1 * out)


def _eva_post_norm_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, x, rope=attend.rope(), attn_mask=attend.bias(x))
    return x + b.drop_path1(b.norm1(out))


def _gamma_feed(b: Block, x: Tensor) -> Tensor:
    out = b.mlp(b.norm2(x))
    return x + b.drop_path2(out if b.gamma_2 is None else b.gamma_2 * out)


def _beit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = attend.bias(x, "shared_rel_pos_bias")
    out = attend(b.attn, b.norm1(x), shared_rel_pos_bias=bias)
    return x + b.drop_path1(out if b.gamma_1 is None else b.gamma_1 * out)


def _relpos_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, b.norm1(x), shared_rel_pos=attend.bias(x, "shared_rel_pos"))
    return x + b.drop_path1(b.ls1(out))


def _relpos_post_norm_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attn, x, shared_rel_pos=attend.bias(x, "shared_rel_pos"))
    return x + b.drop_path1(b.norm1(out))


def _hf_bias(attention: Any, x: Tensor, attend: Attend) -> Tensor | None:
    _check_bias(attention, attend)
    return attend.bias(x, "attention_mask")


def _check_bias(attention: Any, attend: Attend) -> None:
    """Refuse a bias where the implementation of attention that the model was set to takes none."""
    name = getattr(attention.config, "_attn_implementation", None) or ""
    if ("flash" in name or "flex" in name) and attend.biased("attention_mask"):
        raise UnsupportedModel(
            f"{name} takes no bias, by which merged tokens count as often as their sizes: load the "
            "model with attn_implementation='sdpa', or fold it with proportional=False"
        )


def _hf_vit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = _hf_bias(b.attention, x, attend)
    return b.dropout(attend(b.attention, b.layernorm_before(x), attention_mask=bias)) + x


def _hf_vit_feed(b: Block, x: Tensor) -> Tensor:
    return b.dropout(b.mlp(b.layernorm_after(x))) + x


def _hf_beit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    _check_bias(b.attention, attend)
    bias = attend.given.get("attention_mask")
    if b.relative_position_bias is not None:
        own = _hf_beit_bias(b, attend)
        bias = own if bias is None else own + bias
    out = attend(b.attention, b.layernorm_before(x), attention_mask=attend.join(bias, x))
    return b.drop_path(b.lambda_1 * b.dropout(out)) + x


def _hf_beit_bias(b: Block, attend: Attend) -> Tensor:
    height, width = attend.given["resolution"]
    return b.relative_position_bias(
        (height // b.patch_size, width // b.patch_size),
        attend.given.get("interpolate_pos_encoding", False),
        dim_size=attend.state.tokens,
    )


def _hf_beit_feed(b: Block, x: Tensor) -> Tensor:
    return b.drop_path(b.lambda_2 * b.dropout(b.mlp(b.layernorm_after(x)))) + x


def _dino_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = _hf_bias(b.attention, x, attend)
    out = attend(b.attention, b.norm1(x), attention_mask=bias, **_dino_positions(attend))
    return b.drop_path(b.layer_scale1(out)) + x


def _dino_positions(attend: Attend) -> dict[str, Any]:
    tables = attend.given.get("position_embeddings")
    if tables is None:
        return {}
    cosine, sine = tables
    one, zero = cosine.new_ones(()), sine.new_zeros(())
    return {"position_embeddings": (attend.positions(cosine, one), attend.positions(sine, zero))}


def _dino_feed(b: Block, x: Tensor) -> Tensor:
    return b.drop_path(b.layer_scale2(b.mlp(b.norm2(x)))) + x


def _clip_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = _hf_bias(b.self_attn, x, attend)
    return x + attend(b.self_attn, b.layer_norm1(x), attention_mask=bias)


def _clip_feed(b: Block, x: Tensor) -> Tensor:
    return x + b.mlp(b.layer_norm2(x))


def _attn(b: Block) -> Sequence[nn.Module]:
    return [b.attn]


def _attns(b: Block) -> Sequence[nn.Module]:
    return [branch.attn for branch in b.attns]


def _attention(b: Block) -> Sequence[nn.Module]:
    return [b.attention]


def _self_attn(b: Block) -> Sequence[nn.Module]:
    return [b.self_attn]


def _itself(b: Block) -> Sequence[nn.Module]:
    return [b]


_HF_VIT = BlockKind(_hf_vit_attend, _hf_vit_feed, ("attention_mask",), _attention)
_DINO = BlockKind(_dino_attend, _dino_feed, ("attention_mask", "position_embeddings"), _attention)
_CLIP = BlockKind(_clip_attend, _clip_feed, ("attention_mask",), _self_attn)
_PARALLEL = BlockKind(_parallel_attend, None, MASKED, _itself)
_BEIT = ("attention_mask", "interpolate_pos_encoding", "resolution")

_VIT = "timm.models.vision_transformer."
_EVA = "timm.models.eva."
_RELPOS = "timm.models.vision_transformer_relpos."
_HF = "transformers.models."

KINDS: dict[str, BlockKind] = {
    _VIT + "Block": BlockKind(_vit_attend, _vit_feed, MASKED, _attn),
    _VIT + "ResPostBlock": BlockKind(_post_norm_attend, _post_norm_feed, MASKED, _attn),
    _VIT + "ParallelThingsBlock": BlockKind(_things_attend, _things_feed, MASKED, _attns),
    _VIT + "ParallelScalingBlock": _PARALLEL,
    _VIT + "DiffParallelScalingBlock": _PARALLEL,
    _EVA + "EvaBlock": BlockKind(_eva_attend, _gamma_feed, ROTARY, _attn),
    _EVA + "EvaBlockPostNorm": BlockKind(_eva_post_norm_attend, _post_norm_feed, ROTARY, _attn),
    "timm.models.beit.Block": BlockKind(_beit_attend, _gamma_feed, ("shared_rel_pos_bias",), _attn),
    _RELPOS + "RelPosBlock": BlockKind(_relpos_attend, _vit_feed, ("shared_rel_pos",), _attn),
    _RELPOS + "ResPostRelPosBlock": BlockKind(
        _relpos_post_norm_attend, _post_norm_feed, ("shared_rel_pos",), _attn
    ),
    _HF + "vit.modeling_vit.ViTLayer": _HF_VIT,
    _HF + "deit.modeling_deit.DeiTLayer": _HF_VIT,
    _HF + "beit.modeling_beit.BeitLayer": BlockKind(
        _hf_beit_attend, _hf_beit_feed, _BEIT, _attention
    ),
    _HF + "dinov2.modeling_dinov2.Dinov2Layer": _DINO,
    _HF + "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer": _DINO,
    _HF + "dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayer": _DINO,
    _HF + "clip.modeling_clip.CLIPEncoderLayer": _CLIP,
    _HF + "siglip.modeling_siglip.SiglipEncoderLayer": _CLIP,
    _HF + "siglip2.modeling_siglip2.Siglip2EncoderLayer": _CLIP,
}
"""Every kind of block by the full name of the class that makes its forward."""

ATTENTIONS: frozenset[str] = frozenset(
    {
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
        "timm.layers.diff_attention.DiffAttention",
        _VIT + "Attention",  # its place in timm before 1.0.17
        _VIT + "ParallelScalingBlock",
        _VIT + "DiffParallelScalingBlock",
        _EVA + "EvaAttention",
        "timm.models.beit.Attention",
        _RELPOS + "RelPosAttention",
        _HF + "vit.modeling_vit.ViTAttention",
        _HF + "deit.modeling_deit.DeiTAttention",
        _HF + "beit.modeling_beit.BeitAttention",
        _HF + "dinov2.modeling_dinov2.Dinov2Attention",
        _HF + "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersAttention",
        _HF + "dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention",
        _HF + "clip.modeling_clip.CLIPAttention",
        _HF + "siglip.modeling_siglip.SiglipAttention",
        _HF + "siglip2.modeling_siglip2.Siglip2Attention",
    }
)
"""What attends to all tokens alike, takes a bias, and shows its queries, keys and values."""
