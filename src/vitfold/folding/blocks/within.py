"""Attention within each of many images whose tokens lie one after another.

All functions take `q, k, v[1, H, T, d]` and give `[1, H, T, d]`: image by image on a CPU, where
what one image needs stays in the cache; all at once and padded on a GPU, which wants few calls.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.folding.blocks.own import logits, received, weighed
from vitfold.tokens.packed import Packed

ELEMENTS = 2**18
"""How many weights of an image are there at once while it is scored: they stay in the cache."""

MOST_ELEMENTS = 2**26
"""How many weights of all images are there at once where images are padded."""


@dataclass(frozen=True)
class Images:
    """Lengths, biases and sizes of images whose tokens lie one after another, for attention within
    each.

    state: how long they are, and where their tokens come from.
    sizes: `[1, 1, 1, T]` what is added to the logits of every key.
    bias: what is added to those of original tokens.
    scale: of the products.
    """

    state: Packed
    sizes: Tensor | None
    bias: Tensor | None
    scale: float | None

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """`[B, longest]`: the tokens of each image, and which of those places hold one."""
        return self.state.table

    def biases(self, like: Tensor) -> list[Tensor | None]:
        """`[1, 1 or H, n or 1, n]` for every image: what is added to its logits."""
        lengths = self.state.lengths
        sizes: list[Tensor | None] = [None] * len(lengths)
        if self.sizes is not None:
            sizes = list(self.sizes.split(lengths, dim=3))
        if self.bias is None:
            return sizes
        own = [self.state.bias(self.bias, image).to(like.dtype) for image in range(len(lengths))]
        return [b if s is None else b + s for b, s in zip(own, sizes, strict=True)]

    def mask(self, like: Tensor) -> Tensor:
        """`[B, 1 or H, longest or 1, longest]`: what is added where images are padded."""
        rows, here = self.table
        blank = like.new_zeros(rows.shape)
        mask = blank if self.sizes is None else self.sizes.flatten()[rows]
        mask = mask.masked_fill(~here, float("-inf"))[:, None, None]
        if self.bias is None:
            return mask
        return mask + self.state.biases(self.bias).to(like.dtype)

    def padded(self, x: Tensor) -> Tensor:
        """`[B, H, longest, d]`, zeros where an image has no token: what others have is not to
        matter, be it no number."""
        rows, here = self.table
        return x[0][:, rows].transpose(0, 1).masked_fill(~here[:, None, :, None], 0)


def at_once(q: Tensor) -> bool:
    """Whether images are padded and computed in one call, not one by one."""
    return q.is_cuda


def attend(q: Tensor, k: Tensor, v: Tensor, images: Images) -> tuple[Tensor, None]:
    """`[1, H, T, d]`: the output of attention."""
    return (_padded if at_once(q) else _one_by_one)(q, k, v, images), None


def scored(q: Tensor, k: Tensor, v: Tensor, images: Images) -> tuple[Tensor, Tensor]:
    """The output of attention, and `[1, T]` the attention that each token received."""
    if at_once(q):
        return _padded(q, k, v, images), _received(q, k, images)
    return _scored_one_by_one(q, k, v, images)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, images: Images) -> Tensor:
    outs = [
        F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=images.scale)
        for queries, keys, values, bias in _apart(q, k, v, images)
    ]
    return torch.cat(outs, dim=2)


def _scored_one_by_one(q: Tensor, k: Tensor, v: Tensor, images: Images) -> tuple[Tensor, Tensor]:
    """Attention image by image, from weights that also give the attention received."""
    outs, scores = [], []
    for queries, keys, values, bias in _apart(q, k, v, images):
        heads, tokens = queries.shape[1:3]
        total = keys.new_zeros(())
        step = max(ELEMENTS // (heads * tokens), 1)
        for some in (slice(start, start + step) for start in range(0, tokens, step)):
            added = bias if bias is None else bias[0, :, some] if bias.shape[2] > 1 else bias[0]
            weights = weighed(queries[0, :, some], keys[0], added, images.scale)
            outs.append(torch.bmm(weights.to(v.dtype), values[0]).unsqueeze(0))
            total = weights.sum(dim=(0, 1)) + total
        scores.append(total / (heads * tokens))
    return torch.cat(outs, dim=2), torch.cat(scores).unsqueeze(0)


def _apart(
    q: Tensor, k: Tensor, v: Tensor, images: Images
) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    split = [part.split(images.state.lengths, dim=2) for part in (q, k, v)]
    return list(zip(*split, images.biases(q), strict=True))


def _padded(q: Tensor, k: Tensor, v: Tensor, images: Images) -> Tensor:
    queries, keys, values = (images.padded(part) for part in (q, k, v))
    mask, here = images.mask(q), images.table[1]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=images.scale)
    return out.transpose(1, 2)[here].transpose(0, 1).unsqueeze(0)


def _received(q: Tensor, k: Tensor, images: Images) -> Tensor:
    """`[1, T]`: the attention that each token received, by one more product of queries and keys,
    of some images at a time."""
    queries, keys, mask = images.padded(q), images.padded(k), images.mask(q)
    here = images.table[1]
    _, heads, tokens, _ = queries.shape
    step = max(MOST_ELEMENTS // max(heads * tokens**2, 1), 1)
    some = [slice(start, start + step) for start in range(0, len(queries), step)]
    weights = (logits(queries[s], keys[s], mask[s], images.scale).softmax(dim=-1) for s in some)
    scores = [received(part, here[s]) for part, s in zip(weights, some, strict=True)]
    return torch.cat(scores)[here].unsqueeze(0)
