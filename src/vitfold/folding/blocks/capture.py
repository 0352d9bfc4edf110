"""Handing out the queries, keys or values that an attention module computes, without computing
them twice: the part that makes them is replaced, for one call, by one that also shows them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfold.folding.blocks.names import maker
from vitfold.tokens.cues import sum_over_heads

Module = Callable[[Tensor], Tensor]
See = Callable[[Tensor], None]


TOKENS_FIRST = frozenset({"timm.models.vision_transformer.ParallelScalingBlock"})
"""What norms its queries and keys before it moves the heads in front of the tokens."""


def tap(attention: Any, cue: str, see: See) -> dict[str, Any]:
    """Parts for a stand-in of `attention` that show `see` the projection `cue` (`k`, `q` or `v`),
    summed over heads `[B, N, d]`: after its norm, before rotary positions."""
    norm, projection = f"{cue}_norm", f"{cue}_proj"
    if hasattr(attention, norm):
        turned = maker(type(attention)) in TOKENS_FIRST
        show = _summed(see, turned)
        return {norm: _tapped(getattr(attention, norm), show)}
    if getattr(attention, projection, None) is not None:
        width = attention.head_dim
        return {
            projection: _tapped(getattr(attention, projection), lambda y: see(_heads(y, width)))
        }
    third, heads = "qkv".index(cue), attention.num_heads
    if hasattr(attention, "in_proj"):  # a parallel block: MLP, q, k and v in one projection
        width = sum(attention.in_split[1:])
        show = _third(third, heads, see)
        return {"in_proj": _tapped(attention.in_proj, lambda y: show(y[..., -width:]))}
    return {"qkv": _tapped(_with_bias(attention), _third(third, heads, see)), "q_bias": None}


def _summed(see: See, turned: bool) -> See:
    """Shows the sum over heads of `[B, H, N, d]`, or of `[B, N, H, d]` if `turned`."""
    return lambda y: see(sum_over_heads(y.transpose(1, 2) if turned else y))


def _tapped(module: Module, see: See) -> Module:
    def run(x: Tensor) -> Tensor:
        y = module(x)
        see(y)
        return y

    return run


def _third(index: int, heads: int, see: See) -> See:
    def show(y: Tensor) -> None:
        part = y.chunk(3, dim=-1)[index]
        see(_heads(part, part.shape[-1] // heads))

    return show


def _heads(y: Tensor, width: int) -> Tensor:
    """`[B, N, width]`: the sum over the heads that lie side by side in `y[B, N, H * width]`."""
    return sum_over_heads(y.unflatten(-1, (-1, width)).transpose(1, 2))


def _with_bias(attention: Any) -> Module:
    """The fused projection of an attention module; some keep its bias in separate tensors."""
    qkv: nn.Linear = attention.qkv
    if getattr(attention, "q_bias", None) is None:
        return qkv

    def project(x: Tensor) -> Tensor:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        if attention.qkv_bias_separate:
            return qkv(x) + bias
        return F.linear(x, qkv.weight, bias)

    return project
