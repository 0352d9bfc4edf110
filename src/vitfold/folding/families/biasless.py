"""Attention of transformers that takes no bias: what its modules compute, with one."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, side_by_side
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HFFamily

PARTS = {"q": "query", "k": "key", "v": "value"}
"""What the projections of `separate` attention are called."""


class Biasless(HFFamily):
    """Base of families whose attention runs by its own code while there is no bias, and by
    `biased` where there is one."""

    @staticmethod
    def biased(attention: Any, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the attention computes, with a bias."""
        raise NotImplementedError

    def attended(self, attention: Any, x: Tensor, attend: Attend) -> Tensor:
        """The output of attention over current tokens."""
        bias = self.bias(attention, x, attend)
        return attend(attention, x) if bias is None else attend(attention, x, attention_mask=bias)

    def fused(self, attention: Any) -> Mapping[str, Any]:
        return {"forward": type(self).biased}

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        return {"forward": type(self).biased}


class Joint(Biasless):
    """Of attention with one projection `qkv`."""

    @staticmethod
    def biased(attention: Any, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = attention.projection(joined(attention, x, attention_mask))
        return out


class Separate(Biasless):
    """Of attention with projections `query`, `key` and `value`, and none of its output."""

    @staticmethod
    def biased(attention: Any, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return separated(attention, x, attention.attention_head_size, attention_mask)

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        return of_part(attention, cue, show, attention.attention_head_size)


class InParts(Separate):
    """Of blocks with attention in `attention.attention`, and its projection beside it."""

    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)
    block_arguments: ClassVar[tuple[str, ...]] = ()
    attention: ClassVar = "attention.attention"

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        normed = block.layernorm_before(x)
        out = self.attended(block.attention.attention, normed, attend)
        return block.attention.output(out, normed) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.output(block.intermediate(block.layernorm_after(x)), x)


def of_part(
    attention: Any, cue: str, show: Callable[[Tensor], None], width: int
) -> Mapping[str, Any]:
    """The override that shows what a projection of `separate` attention gives, by heads of that
    width."""
    part = PARTS[cue]
    return {part: showing(getattr(attention, part), side_by_side(show, width))}


def joined(attention: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """`[B, n, C]`: attention by `qkv`, before any projection of its output."""
    heads = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return _attended(attention, q, k, v, bias)


def separated(attention: Any, x: Tensor, width: int, bias: Tensor | None) -> Tensor:
    """`[B, n, C]`: attention by heads of that width, before any projection of its output."""
    projections = (getattr(attention, part) for part in PARTS.values())
    q, k, v = (part(x).unflatten(-1, (-1, width)).transpose(1, 2) for part in projections)
    return _attended(attention, q, k, v, bias)


def _attended(attention: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`[B, n, C]`: of `q, k, v[B, H, n, d]`."""
    dropout = _dropout(attention) if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def _dropout(attention: Any) -> float:
    """The rate at which weights of attention are left out in training."""
    names = ("dropout_prob", "attention_dropout", "attn_drop", "dropout")
    rate = next(getattr(attention, name) for name in names if hasattr(attention, name))
    return float(getattr(rate, "p", rate))
