"""What tokens are compared by."""

from typing import Literal, get_args

import torch
from torch import Tensor

Cue = Literal["k", "q", "v", "x_pre", "x_attn", "random"]

CUES: tuple[str, ...] = get_args(Cue)

PROJECTIONS = ("k", "q", "v")
"""Cues that only the attention module itself can hand out."""

_RANDOM_CHANNELS = 16


def mean_over_heads(heads: Tensor) -> Tensor:
    """`[B, N, d]` from `[B, H, N, d]`."""
    total = heads[:, 0]
    # Adding slices is several times faster than reducing over this strided axis.
    for head in range(1, heads.shape[1]):
        total = total + heads[:, head]
    return total / heads.shape[1]


def random(like: Tensor, seed: int) -> Tensor:
    """`[B, N, d]` values that only the seed and a token's position decide: the same for every
    image, on every device, alone or in a batch."""
    tokens = like.shape[1]
    x = torch.arange(tokens * _RANDOM_CHANNELS, device=like.device) + (seed * 7919 + 1) * 104729
    for multiplier in (2654435769, 2246822519):  # multiply and shift, twice: a small integer hash
        x = (x * multiplier) & 0xFFFFFFFF
        x = x ^ (x >> 15)
    values = (x.to(torch.float32) / 2**31 - 1).view(1, tokens, _RANDOM_CHANNELS)
    return values.to(like.dtype).expand(like.shape[0], -1, -1)
