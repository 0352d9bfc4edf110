"""Attention within each of many images whose tokens lie one after another: the ways there are.

All take `q, k, v[1, H, T, d]` and give `[1, H, T, d]`. One is made for CPUs, three for GPUs, of
which `benchmarks/ragged.py --way` tells which is best on a machine.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from vitfold.folding.blocks.own import logits, received, weighed
from vitfold.tokens import ragged
from vitfold.tokens.packed import Packed

ELEMENTS = 2**18
"""How many weights of an image are there at once while it is scored: they stay in the cache."""

MOST_ELEMENTS = 2**26
"""The same of all images, where they are padded."""

BLOCK = 128
"""How many queries, and how many keys, flexible attention skips or sees together."""

NARROW = 16
"""How many channels its heads have at least, on a GPU."""

LANES = 8
"""Of how many channels a head of varlen attention is a multiple."""


@dataclass(frozen=True)
class Images:
    """What is known of images beside their queries, keys and values.

    device: where they are.
    books: how long they are, and where their tokens come from.
    sizes: `[1, 1, 1, T]` what is added to the logits of every key.
    bias: what is added to those of original tokens.
    scale: of the products.
    """

    device: torch.device
    books: Packed
    sizes: Tensor | None
    bias: Tensor | None
    scale: float | None

    def biases(self, like: Tensor) -> list[Tensor | None]:
        """`[1, 1 or H, n or 1, n]` for every image: what is added to its logits."""
        lengths = self.books.lengths
        sizes: list[Tensor | None] = [None] * len(lengths)
        if self.sizes is not None:
            sizes = list(self.sizes.split(lengths, dim=3))
        if self.bias is None:
            return sizes
        own = [self.books.bias(self.bias, image).to(like.dtype) for image in range(len(lengths))]
        return [b if s is None else b + s for b, s in zip(own, sizes, strict=True)]

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """`[B, longest]`: the tokens of each image, and which of those places hold one."""
        return self.books.rows(self.device)

    @cached_property
    def owners(self) -> Tensor:
        """`[T]`: the image of every token."""
        return ragged.owners(self.books.numbers(self.device), self.books.now)

    def mask(self, like: Tensor) -> Tensor:
        """`[B, 1 or H, longest or 1, longest]`: what is added where images are padded."""
        rows, here = self.rows
        blank = like.new_zeros(rows.shape)
        mask = blank if self.sizes is None else self.sizes.flatten()[rows]
        mask = mask.masked_fill(~here, float("-inf"))[:, None, None]
        if self.bias is None:
            return mask
        return mask + self.books.biases(self.bias, rows).to(like.dtype)

    def padded(self, x: Tensor) -> Tensor:
        """`[B, H, longest, d]`, zeros where an image has no token: what others have is not to
        matter, be it no number."""
        rows, here = self.rows
        return x[0][:, rows].transpose(0, 1).masked_fill(~here[:, None, :, None], 0)


Way = Callable[[Tensor, Tensor, Tensor, Images], Tensor]


def one_by_one(q: Tensor, k: Tensor, v: Tensor, images: Images) -> Tensor:
    """One image after another: on a CPU, what an image needs stays in the cache."""
    outs = [
        F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=images.scale)
        for queries, keys, values, bias in _apart(q, k, v, images)
    ]
    return torch.cat(outs, dim=2)


def scored(q: Tensor, k: Tensor, v: Tensor, images: Images) -> tuple[Tensor, Tensor]:
    """The same, and `[1, T]` the attention that each token received: the weights are there."""
    outs, seen = [], []
    for queries, keys, values, bias in _apart(q, k, v, images):
        heads, tokens = queries.shape[1:3]
        total = keys.new_zeros(())
        step = max(ELEMENTS // (heads * tokens), 1)
        for some in (slice(start, start + step) for start in range(0, tokens, step)):
            added = bias if bias is None else bias[0, :, some] if bias.shape[2] > 1 else bias[0]
            weights = weighed(queries[0, :, some], keys[0], added, images.scale)
            outs.append(torch.bmm(weights.to(v.dtype), values[0]).unsqueeze(0))
            total = weights.sum(dim=(0, 1)) + total
        seen.append(total / (heads * tokens))
    return torch.cat(outs, dim=2), torch.cat(seen).unsqueeze(0)


def _apart(
    q: Tensor, k: Tensor, v: Tensor, images: Images
) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    split = [part.split(images.books.lengths, dim=2) for part in (q, k, v)]
    return list(zip(*split, images.biases(q), strict=True))


def padded(q: Tensor, k: Tensor, v: Tensor, images: Images) -> Tensor:
    """All images at once, padded to the longest: few calls, as a GPU wants it."""
    queries, keys, values = (images.padded(part) for part in (q, k, v))
    mask, here = images.mask(q), images.rows[1]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=images.scale)
    return out.transpose(1, 2)[here].transpose(0, 1).unsqueeze(0)


def flexible(q: Tensor, k: Tensor, v: Tensor, images: Images) -> Tensor:
    """One kernel over all tokens that skips blocks in which no two are of one image. An image that
    is no number makes those that share its blocks so."""
    fits = not q.is_cuda or (q.dtype != torch.float64 and q.shape[-1] >= NARROW)
    if images.bias is not None or not fits:
        return padded(q, k, v, images)
    image, sizes = images.owners, images.sizes
    added = None if sizes is None else sizes.flatten()

    def same(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return image[query] == image[key]

    def sized(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, key: Tensor) -> Tensor:
        return score if added is None else score + added[key]

    numbers, blocks = _blocks(images)
    mask = BlockMask.from_kv_blocks(
        numbers,
        blocks,
        BLOCK_SIZE=BLOCK,
        mask_mod=same,
        seq_lengths=(q.shape[2], q.shape[2]),
        compute_q_blocks=torch.is_grad_enabled(),
    )
    attend: Any = _compiled() if q.is_cuda else flex_attention
    out: Tensor = attend(q, k, v, score_mod=sized, block_mask=mask, scale=images.scale)
    return out


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def _blocks(images: Images) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries sees, and which: those of its images."""
    total, device = images.books.now, images.device
    ends = torch.tensor(images.books.starts, device=device)
    first = torch.arange(0, total, BLOCK, device=device)
    last = (first + BLOCK - 1).clamp(max=total - 1)
    low = ends[images.owners[first]] // BLOCK
    high = (ends[images.owners[last] + 1] - 1) // BLOCK
    places = torch.arange(len(first), device=device)
    blocks = (low.unsqueeze(1) + places).clamp(max=len(first) - 1)
    return (high - low + 1).int()[None, None], blocks.int()[None, None]


def varied(q: Tensor, k: Tensor, v: Tensor, images: Images) -> Tensor:
    """Flash attention for rows of several lengths, in half precision. It takes no bias: sizes are
    products of two more channels, of which the second has what the first rounds away."""
    from torch.nn.attention.varlen import varlen_attn  # not in every build

    scales = "scale" in inspect.signature(varlen_attn).parameters  # not in torch 2.10
    if images.bias is not None or q.element_size() > 2 or not scales:
        return padded(q, k, v, images)
    width = q.shape[-1]
    scale = width**-0.5 if images.scale is None else images.scale
    if images.sizes is not None:
        one = 2.0 ** round(-math.log2(scale))  # which half precision has exactly
        sizes = images.books.log_size(q.float())
        assert sizes is not None  # those are it, rounded
        exact = sizes.transpose(2, 3).expand(1, k.shape[1], -1, 1) / (one * scale)
        high = exact.to(k.dtype)
        low = (exact - high).to(k.dtype)
        k, q = torch.cat([k, high, low], dim=-1), F.pad(q, (0, 2), value=one)
    more = -q.shape[-1] % LANES
    q, k = F.pad(q, (0, more)), F.pad(k, (0, more))
    v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    starts = torch.tensor(images.books.starts, device=images.device, dtype=torch.int32)
    longest = max(images.books.lengths)
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (q, k, v))
    out: Any = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale)
    return out[..., :width].transpose(0, 1).unsqueeze(0)


def seen(q: Tensor, k: Tensor, images: Images) -> Tensor:
    """`[1, T]`: the attention that each token received, by one more product of queries and keys,
    of some images at a time."""
    queries, keys, mask, here = images.padded(q), images.padded(k), images.mask(q), images.rows[1]
    _, heads, tokens, _ = queries.shape
    step = max(MOST_ELEMENTS // max(heads * tokens**2, 1), 1)
    some = [slice(start, start + step) for start in range(0, len(queries), step)]
    weights = (logits(queries[s], keys[s], mask[s], images.scale).softmax(dim=-1) for s in some)
    scores = [received(part, here[s]) for part, s in zip(weights, some, strict=True)]
    return torch.cat(scores)[here].unsqueeze(0)


WAYS: dict[str, Way] = {
    "one-by-one": one_by_one,
    "padded": padded,
    "flexible": flexible,
    "varied": varied,
}
