"""Attention of images that each keep their own number of tokens: every image by itself."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.blocks.own import OwnAttend, logits, received, weighed
from vitfold.ledger import Packed
from vitfold.ledger.rows import additive

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
            own = additive(self.dense, q.dtype)
            bias = own if bias is None else own + bias
        way = _padded if q.is_cuda else _one_by_one
        return way(self, q, k, v, bias, scale)

    def _tap(self, attention: Any) -> dict[str, Any]:
        """No prefix of its own either: those of all images lie among the others."""
        parts = super()._tap(attention)
        return parts | {"num_prefix_tokens": 0}


def _one_by_one(
    attend: PackedAttend, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """One image after another: on a CPU, what an image needs stays in the cache."""
    lengths = attend.books.lengths
    queries, keys, values = (part.split(lengths, dim=2) for part in (q, k, v))
    images = list(zip(queries, keys, values, _biases(attend, q, bias), strict=True))
    if not attend.wanted:
        outs = [F.scaled_dot_product_attention(*image, scale=scale) for image in images]
        return torch.cat(outs, dim=2), None
    scored = [_scored(*image, scale) for image in images]
    seen = torch.cat([scores for _, scores in scored]).unsqueeze(0)
    return torch.cat([out for out, _ in scored], dim=2), seen


def _biases(attend: PackedAttend, like: Tensor, bias: Tensor | None) -> Sequence[Tensor | None]:
    """`[1, 1 or H, n or 1, n]` for every image: what is added to its logits."""
    lengths = attend.books.lengths
    log = attend.sizes(like) if attend.proportional else None
    sizes = [None] * len(lengths) if log is None else log.split(lengths, dim=3)
    if bias is None:
        return sizes
    own = [attend.books.bias(bias, number).to(like.dtype) for number in range(len(lengths))]
    return [b if s is None else b + s for b, s in zip(own, sizes, strict=True)]


def _scored(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The output, and the attention that each token received: the weights are there once."""
    weights = weighed(q[0], k[0], None if bias is None else bias[0], scale)
    out = torch.bmm(weights.to(v.dtype), v[0]).unsqueeze(0)
    return out, weights.flatten(0, 1).mean(dim=0)


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
