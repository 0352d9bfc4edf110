"""What the blocks of every family do, in two halves; tokens are reduced between them.

A kind of block is known by its class. `attend` runs the first half on the residual stream,
`feed` the second; a block whose attention and MLP run in parallel has no middle, and is reduced
after it. Each half is the block's own two lines, so that all that hangs in them (LayerScale,
DropPath, gates, post-norm) stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitfold.blocks.attention import Attend

Block = Any


@dataclass(frozen=True)
class Kind:
    """One class of blocks.

    attend: the first half: from the residual stream to the residual stream.
    feed: the second half, or None where there is only one.
    arguments: names of what the block takes besides its tokens, in their order.
    """

    attend: Callable[[Block, Tensor, Attend], Tensor]
    feed: Callable[[Block, Tensor], Tensor] | None
    arguments: tuple[str, ...]


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
    out = attend.whole(b, x, attn_mask=attend.bias(x))
    if attend.cue == "x_attn":  # attention and MLP share an output: what the block adds
        attend.shown.append(out - x)
    return out


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


def _hf_vit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    out = attend(b.attention, b.layernorm_before(x), attention_mask=attend.bias(x, "attention_mask"))
    return b.dropout(out) + x


def _hf_vit_feed(b: Block, x: Tensor) -> Tensor:
    return b.dropout(b.mlp(b.layernorm_after(x))) + x


def _hf_beit_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = attend.given.get("attention_mask")
    if b.relative_position_bias is not None:
        own = _hf_beit_bias(b, attend)
        bias = own if bias is None else own + bias
    out = attend(b.attention, b.layernorm_before(x), attention_mask=attend.join(bias, x))
    return b.drop_path(b.lambda_1 * b.dropout(out)) + x


def _hf_beit_bias(b: Block, attend: Attend) -> Tensor:
    height, width = attend.given["resolution"]
    return b.relative_position_bias(  # type: ignore[no-any-return]
        (height // b.patch_size, width // b.patch_size),
        attend.given.get("interpolate_pos_encoding", False),
        dim_size=attend.ledger.tokens,
    )


def _hf_beit_feed(b: Block, x: Tensor) -> Tensor:
    return b.drop_path(b.lambda_2 * b.dropout(b.mlp(b.layernorm_after(x)))) + x


def _dino_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = attend.bias(x, "attention_mask")
    out = attend(b.attention, b.norm1(x), attention_mask=bias, **_dino_positions(attend))
    return b.drop_path(b.layer_scale1(out)) + x


def _dino_positions(attend: Attend) -> dict[str, Any]:
    tables = attend.given.get("position_embeddings")
    if tables is None:
        return {}
    return {"position_embeddings": tuple(attend.ledger.positions(table) for table in tables)}


def _dino_feed(b: Block, x: Tensor) -> Tensor:
    return b.drop_path(b.layer_scale2(b.mlp(b.norm2(x)))) + x


def _clip_attend(b: Block, x: Tensor, attend: Attend) -> Tensor:
    bias = attend.bias(x, "attention_mask")
    return x + attend(b.self_attn, b.layer_norm1(x), attention_mask=bias)


def _clip_feed(b: Block, x: Tensor) -> Tensor:
    return x + b.mlp(b.layer_norm2(x))


_HF_VIT = Kind(_hf_vit_attend, _hf_vit_feed, ("attention_mask",))
_DINO = Kind(_dino_attend, _dino_feed, ("attention_mask", "position_embeddings"))
_CLIP = Kind(_clip_attend, _clip_feed, ("attention_mask",))
_PARALLEL = Kind(_parallel_attend, None, MASKED)

KINDS: dict[str, Kind] = {
    "timm.models.vision_transformer.Block": Kind(_vit_attend, _vit_feed, MASKED),
    "timm.models.vision_transformer.ResPostBlock": Kind(
        _post_norm_attend, _post_norm_feed, MASKED
    ),
    "timm.models.vision_transformer.ParallelThingsBlock": Kind(
        _things_attend, _things_feed, MASKED
    ),
    "timm.models.vision_transformer.ParallelScalingBlock": _PARALLEL,
    "timm.models.vision_transformer.DiffParallelScalingBlock": _PARALLEL,
    "timm.models.eva.EvaBlock": Kind(_eva_attend, _gamma_feed, ROTARY),
    "timm.models.eva.EvaBlockPostNorm": Kind(_eva_post_norm_attend, _post_norm_feed, ROTARY),
    "timm.models.beit.Block": Kind(_beit_attend, _gamma_feed, ("shared_rel_pos_bias",)),
    "timm.models.vision_transformer_relpos.RelPosBlock": Kind(
        _relpos_attend, _vit_feed, ("shared_rel_pos",)
    ),
    "timm.models.vision_transformer_relpos.ResPostRelPosBlock": Kind(
        _relpos_post_norm_attend, _post_norm_feed, ("shared_rel_pos",)
    ),
    "transformers.models.vit.modeling_vit.ViTLayer": _HF_VIT,
    "transformers.models.deit.modeling_deit.DeiTLayer": _HF_VIT,
    "transformers.models.beit.modeling_beit.BeitLayer": Kind(
        _hf_beit_attend, _hf_beit_feed, ("attention_mask", "interpolate_pos_encoding", "resolution")
    ),
    "transformers.models.dinov2.modeling_dinov2.Dinov2Layer": _DINO,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers"
    ".Dinov2WithRegistersLayer": _DINO,
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayer": _DINO,
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer": _CLIP,
    "transformers.models.siglip.modeling_siglip.SiglipEncoderLayer": _CLIP,
    "transformers.models.siglip2.modeling_siglip2.Siglip2EncoderLayer": _CLIP,
}
"""Every kind of block by the full name of its class. A string, so that no library is imported
before a model of it is there."""


def full_name(cls: type) -> str:
    """`package.module.Class`."""
    return f"{cls.__module__}.{cls.__qualname__}"
