"""open_clip's `VisionTransformer`, whose blocks attend by `nn.MultiheadAttention`, the images in
front of the tokens or behind them."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, third
from vitfold.folding.blocks.kinds import Block, BlockKind
from vitfold.folding.blocks.names import maker
from vitfold.folding.blocks.proxy import run as run_method
from vitfold.folding.families.base import Family
from vitfold.folding.families.common import key_bias, weighted
from vitfold.folding.families.registry import register_family
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState

OPEN_CLIP = "open_clip.transformer."

CROPS = {"shortest": "center", "squash": "squash", "longest": "border"}
"""timm's words for what open_clip does with images that are not square."""


@register_family
class OpenClip(Family):
    """The vision tower of CLIP, CoCa and the like, as open_clip builds it itself."""

    trunks: ClassVar[tuple[str, ...]] = (OPEN_CLIP + "VisionTransformer",)
    path: ClassVar = "transformer.resblocks"
    entries: ClassVar[tuple[str, ...]] = ("forward", "forward_intermediates")
    block_types: ClassVar[tuple[str, ...]] = (OPEN_CLIP + "ResidualAttentionBlock",)
    block_arguments: ClassVar[tuple[str, ...]] = ("k_x", "v_x", "attn_mask")
    attention_types: ClassVar[tuple[str, ...]] = ("torch.nn.modules.activation.MultiheadAttention",)
    prefix: Any = 1
    class_token: Any = True

    @property
    def width(self) -> int:
        return int(self.trunk.transformer.width)

    @property
    def reads_patches(self) -> bool:
        trunk = self.trunk
        return trunk.attn_pool is not None or trunk.pool_type != "tok" or trunk.output_tokens

    def preprocessing(self) -> dict[str, Any]:
        """As open_clip's own transform: nothing of an image is cut off but what is not square."""
        stated = getattr(self.trunk, "preprocess_cfg", {})
        channels = {
            name: tuple(value)
            for name in ("mean", "std")
            if (value := getattr(self.trunk, f"image_{name}", stated.get(name))) is not None
        }
        if not stated:
            return channels
        mode = CROPS[stated["resize_mode"]]
        return channels | {
            "crop_pct": 1.0,
            "crop_mode": mode,
            "interpolation": stated["interpolation"],
        }

    # A call

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trunk = self.trunk
        known = maker(type(trunk)) in self.trunks and "_pool" not in vars(trunk)
        tokens = trunk.output_tokens or (trunk.pool_type == "none" and trunk.attn_pool is None)
        if method != "forward" or not known or tokens:
            return super().call(method, run, args, kwargs)

        def pool(x: Tensor) -> Any:
            return run_method(trunk, "_pool", _reading(trunk, run.last), x)

        return self.run(method, run, args, kwargs, _pool=pool)

    # Blocks

    def kind(self, block: nn.Module) -> BlockKind | None:
        kind = super().kind(block)
        first = getattr(self.trunk.transformer, "batch_first", False)
        if kind is None or first:
            return kind
        return BlockKind(self, _attend_turned, _feed_turned, self.block_arguments, axis=0)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        return x + block.ls_1(_attended(block, block.ln_1(x), attend.bias(x), attend))

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    # Attention

    def fused(self, attention: Any) -> Mapping[str, Any]:
        return {"forward": _fused, "qkv": _projection(attention)}

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        """torch's own takes no bias that is the same for all queries, but a copy for each."""
        return self.fused(attention)

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        project = showing(_projection(attention), third(cue, attention.num_heads, show))
        return {"forward": _fused, "qkv": project}


def _attended(block: Block, y: Tensor, bias: Tensor | None, attend: Attend) -> Tensor:
    return attend(block.attn, y, key=y, value=y, need_weights=False, attn_mask=bias)


def _attend_turned(block: Block, x: Tensor, attend: Attend) -> Tensor:
    """The first half where a block, and all that is in it, takes `[N, B, C]`."""
    x = x.transpose(0, 1)
    out = _attended(block, block.ln_1(x), attend.bias(x.transpose(0, 1)), attend)
    if attend.cue == "x_attn":
        attend.captures[-1] = out.transpose(0, 1)
    return (x + block.ls_1(out)).transpose(0, 1)


def _feed_turned(block: Block, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return (x + block.ls_2(block.mlp(block.ln_2(x)))).transpose(0, 1)


def _projection(attention: Any) -> Callable[[Tensor], Tensor]:
    """Queries, keys and values, side by side."""
    return lambda x: F.linear(x, attention.in_proj_weight, attention.in_proj_bias)


def _fused(
    attention: Any, query: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """What `nn.MultiheadAttention` computes of tokens that attend to each other, with keys that
    can be seen, and a bias of any shape that broadcasts."""
    x = query if attention.batch_first else query.transpose(0, 1)
    heads = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    dropout = attention.dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
    out = attention.out_proj(out.transpose(1, 2).flatten(2))
    return (out if attention.batch_first else out.transpose(0, 1)), None


def _reading(trunk: Any, state: TokenState) -> dict[str, Any]:
    """Overrides with which a reduced sequence is pooled: a token of size s counts s times."""
    if not state.changed:
        return {}

    def attention_pool(x: Tensor, pool: Any) -> Tensor:
        bias = key_bias(x, state)

        def attention(query: Tensor, keys: Tensor, values: Tensor, **_: Any) -> Any:
            mask = bias.repeat_interleave(pool.attn.num_heads, dim=0).unsqueeze(1)
            mask = mask.expand(-1, query.shape[1], -1)
            return pool.attn(query, keys, values, attn_mask=mask, need_weights=False)

        return run_method(pool, "forward", {"attn": attention}, x)

    if trunk.attn_pool is None:
        if trunk.pool_type != "avg":
            return {}
        return {"_global_pool": lambda x: trunk._global_pool(weighted(x, state, first=1))}
    pools = {"attn_pool": trunk.attn_pool, "attn_pool_contrastive": trunk.attn_pool_contrastive}
    if trunk.attn_pool_contrastive is not None and trunk.attn_pool_type == "cascade":
        del pools["attn_pool_contrastive"]  # which reads what the other pooled
    return {
        name: _partial(attention_pool, pool) for name, pool in pools.items() if pool is not None
    }


def _partial(function: Any, pool: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, pool)
