"""Capture: handing out the queries, keys or values that an attention module computes, without
computing them twice. The submodule that computes them is overridden, for one call, by one that also
hands them out."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitfold.tokens.cues import sum_over_heads

Module = Callable[[Tensor], Tensor]

Show = Callable[[Tensor], None]


def capture(attention: Any, cue: str, show: Show) -> dict[str, Any]:
    """Overrides of `attention` that capture the projection `cue` (`k`, `q` or `v`), summed over
    heads `[B, N, d]`: after its norm, before rotary positions."""
    norm, projection = f"{cue}_norm", f"{cue}_proj"
    if hasattr(attention, norm):
        return {norm: showing(getattr(attention, norm), normed(show))}
    if getattr(attention, projection, None) is not None:
        width = attention.head_dim
        return {projection: showing(getattr(attention, projection), side_by_side(show, width))}
    return {"qkv": showing(attention.qkv, third(cue, attention.num_heads, show))}


def showing(module: Module, show: Show) -> Module:
    """A module that also hands its output to `show`."""

    def run(x: Tensor) -> Tensor:
        y = module(x)
        show(y)
        return y

    return run


def normed(show: Show, heads_last: bool = False) -> Show:
    """Captures the sum over heads of `[B, H, N, d]`; of `[B, N, H, d]` where they are
    `heads_last`."""
    return lambda y: show(sum_over_heads(y.transpose(1, 2) if heads_last else y))


def side_by_side(show: Show, width: int) -> Show:
    """Captures the sum over the heads that lie side by side in `[B, N, H * width]`."""
    return lambda y: show(_heads(y, width))


def third(cue: str, heads: int, show: Show) -> Show:
    """Captures the third of `[B, N, 3 * H * d]`, queries, keys and values side by side, that is the
    cue, summed over heads."""
    index = "qkv".index(cue)

    def part(y: Tensor) -> None:
        own = y.chunk(3, dim=-1)[index]
        show(_heads(own, own.shape[-1] // heads))

    return part


def _heads(y: Tensor, width: int) -> Tensor:
    return sum_over_heads(y.unflatten(-1, (-1, width)).transpose(1, 2))
