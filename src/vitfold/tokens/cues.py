"""Cues: the features that tokens are compared by."""

from typing import Literal, get_args

import torch
from torch import Tensor

from vitfold.tokens.modes import recording

Cue = Literal["k", "q", "v", "x_pre", "x_attn", "x", "random"]
"""Keys, queries and values as a mean over heads; what enters the block; what attention adds to it;
their sum, which is what merges; nothing."""

CUES: tuple[str, ...] = get_args(Cue)

PROJECTIONS = ("k", "q", "v")
"""Cues that only the attention module itself can hand out."""

_RANDOM_CHANNELS = 16


def sum_over_heads(heads: Tensor) -> Tensor:
    """`[B, N, d]` from `[B, H, N, d]`. As good as the mean: neither the angles between tokens nor
    the order of their lengths depends on the scale."""
    if recording():
        return heads.sum(dim=1)  # one step
    first, *others = heads.unbind(dim=1)
    if not others:
        return first
    # Adding slices is several times faster than reducing over this strided axis.
    total = first + others[0]
    for head in others[1:]:
        total += head
    return total


def random(places: Tensor, seed: int) -> Tensor:
    """`[B, N, d]` values that only the seed and the place of a token `[B, N]` decide: the same for
    every image, on every device, alone or in a batch."""
    start = (seed * 7919 + 1) * 104729 & 0xFFFFFFFF
    channels = torch.arange(_RANDOM_CHANNELS, device=places.device)
    x = places.unsqueeze(-1) * _RANDOM_CHANNELS + channels + start
    for multiplier in (2654435769, 2246822519):  # multiply and shift, twice: a small integer hash
        x = (x * multiplier) & 0xFFFFFFFF
        x = x ^ (x >> 15)
    return x.to(torch.float32) / 2**31 - 1
