"""Attention of images that each keep their own number of tokens: every image by itself."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.blocks.own import OwnAttend, additive, logits, received
from vitfold.ledger import Packed

CHUNK = 16
"""How many images are scored at once where they are padded: bounds the memory of `N x N`."""


class PackedAttend(OwnAttend):
    """Over `[1, H, T, d]`: the tokens of all images, one after another."""

    @property
    def books(self) -> Packed:
        """The ledger, whose images have lengths."""
        assert isinstance(self.ledger, Packed)
        return self.ledger

    dense: Tensor | None = None
    """What a block adds to the logits of original tokens."""

    def join(self, bias: Tensor | None, x: Tensor) -> Tensor | None:
        """Nothing: it is added where the images are apart, as the sizes are."""
        self.dense = bias
        return None

    def biased(self, given: str = "attn_mask") -> bool:
        return False

    def _parts(self, attention: Any, x: Tensor) -> dict[str, Any]:
        return {}

    def positions(self, table: Tensor, still: Tensor) -> Tensor:
        return self.books.rotations(table, still)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.dense is not None:
            own = additive(self.dense, q)
            bias = own if bias is None else own + bias
        way = _padded if q.is_cuda else _one_by_one
        return way(self, q, k, v, bias, scale)

    def _tap(self, attention: Any) -> dict[str, Any]:
        """No prefix of its own either: those of all images lie among the others."""
        parts = super()._tap(attention)
        return parts | {"num_prefix_tokens": 0} if _rotates(attention) else parts


def _rotates(attention: Any) -> bool:
    return hasattr(attention, "num_prefix_tokens")


def _one_by_one(
    attend: PackedAttend, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """One image after another: on a CPU, what an image needs stays in the cache."""
    out = torch.empty_like(v.transpose(1, 2)).transpose(1, 2)
    scores = q.new_empty(q.shape[2]) if attend.wanted else None
    sizes = attend.sizes(q) if attend.proportional else None
    for number, (start, end) in enumerate(itertools.pairwise(attend.books.starts)):
        mine = (q[0, :, start:end], k[0, :, start:end], v[0, :, start:end])
        added = None if sizes is None else sizes[0, ..., start:end]
        if bias is not None:
            own = attend.books.bias(bias, number)[0].to(q.dtype)
            added = own if added is None else own + added
        if scores is None:
            out[0, :, start:end] = _fused(*mine, added, scale)
        else:
            out[0, :, start:end], scores[start:end] = _scored(*mine, added, scale)
    return out, None if scores is None else scores.unsqueeze(0)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    q, k, v = (part.unsqueeze(0) for part in (q, k, v))
    mask = None if bias is None else bias.unsqueeze(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0]


def _scored(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The output, and the attention that each token received: the weights are there once."""
    weights = logits(q, k, bias, scale).softmax(dim=-1)
    return weights.to(v.dtype) @ v, weights.mean(dim=-2).mean(dim=-2)


def _padded(
    attend: PackedAttend, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """All images at once, padded to the longest: few calls, as a GPU wants it."""
    rows, here = attend.books.rows(q)
    q, k, v = (part[0][:, rows].transpose(0, 1) for part in (q, k, v))
    sizes = attend.sizes(q) if attend.proportional else None
    mask = q.new_zeros(rows.shape) if sizes is None else sizes.flatten()[rows]
    mask = mask.masked_fill(~here, float("-inf"))[:, None, None]
    if bias is not None:
        mask = mask + attend.books.biases(bias, rows).to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    out = out.transpose(1, 2)[here].transpose(0, 1).unsqueeze(0)
    if not attend.wanted:
        return out, None
    some = [slice(i, i + CHUNK) for i in range(0, len(q), CHUNK)]
    scores = [_received(q[part], k[part], mask[part], here[part], scale) for part in some]
    return out, torch.cat(scores)[here].unsqueeze(0)


def _received(q: Tensor, k: Tensor, mask: Tensor, here: Tensor, scale: float | None) -> Tensor:
    """`[B, longest]`: one more product of queries and keys, for some images at a time."""
    return received(logits(q, k, mask, scale).softmax(dim=-1), here)
