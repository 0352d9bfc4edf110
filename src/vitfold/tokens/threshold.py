"""Which tokens a threshold merges or drops, image by image.

All functions take tokens as a table `[B, L]` whose rows are images: the tokens that an image has
left, in their order, then padding, where `here[B, L]` is False. Packed tokens and masked ones are
both laid out so, and decide alike. With a temperature the decision has the gradient of a sigmoid,
so that thresholds learn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.tokens import kernels
from vitfold.tokens.kernels import NOWHERE, Side
from vitfold.tokens.match import biggest_first, unit


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every even token with the odd one of its image that it resembles most.

    value: `[B, n]` by how much; minus infinity where there is none.
    even, odd: `[B, n]` the places of the two in the table.
    """

    value: Tensor
    even: Tensor
    odd: Tensor

    def above(self, threshold: Tensor | float, temperature: float | None = None) -> Tensor:
        """`[B, n]`: one for the pairs that resemble each other by more than the threshold."""
        if temperature is None:
            return self.value > threshold
        known = self.value > NOWHERE
        return over(self.value.where(known, -1.0), threshold, temperature).where(known, 0)


def pairs(metric: Tensor, here: Tensor, prefix: int, size: Tensor | None = None) -> Pairs:
    """The pairs of `metric[B, L, d]`, by their cosine; with `size[B, L]`, by minus Ward's distance
    of groups of so many tokens. Prefix tokens take their places, but are in no pair."""
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    places = torch.arange(here.shape[1], device=here.device).expand_as(here)[:, even::2]
    if odd >= here.shape[1]:
        dtype = torch.promote_types(metric.dtype, torch.float32)
        return Pairs(metric.new_full(places.shape, NOWHERE, dtype=dtype), places, places)
    rows = unit(metric)
    a, b = (
        Side(rows[:, first::2], None if size is None else size[:, first::2], here[:, first::2])
        for first in (even, odd)
    )
    nearest = kernels.active(metric).nearest(a, b)
    return Pairs(_bounded(nearest.best, size), places, nearest.partner(None) * 2 + odd)


def keeps(
    score: Tensor,
    here: Tensor,
    prefix: int,
    threshold: Tensor | float,
    temperature: float | None = None,
) -> Tensor:
    """`[B, L]`: one for what stays: the prefix, what has a score above the threshold, and of an
    image that has no such patch the highest."""
    places = torch.arange(here.shape[1], device=here.device)
    free = here & (places >= prefix)
    keep = over(_positive(score), threshold, temperature)
    none = ~(free & (keep.detach() > 0.5)).any(dim=1, keepdim=True)
    best = score.detach().masked_fill(~free, NOWHERE).argmax(dim=1, keepdim=True)
    saved = none & (places == best)
    return (keep + saved * (1 - keep.detach())).where(free, 1)


def best(score: Tensor, left: int) -> Tensor:
    """`[B, L]`: one for the `left` highest of `score[B, L]`, the earlier one first among equals."""
    order = biggest_first(score, kernels.rounding(score))
    return torch.zeros_like(score).scatter(1, order[:, :left], 1.0)


def over(value: Tensor, threshold: Tensor | float, temperature: float | None) -> Tensor:
    """One where a value is above the threshold, with the gradient of a sigmoid if there is a
    temperature."""
    if temperature is None:
        return (value > threshold).to(value.dtype)
    soft = ((value - threshold) / temperature).sigmoid()
    hard = (value > threshold).to(soft.dtype)
    return hard + (soft - soft.detach())  # exactly: what is gone weighs nothing


def _bounded(best: Tensor, size: Tensor | None) -> Tensor:
    """Similarities clamped to what they can be, against rounding: a cosine to at most one, minus a
    distance to at most zero. So a threshold of one, or of zero, merges nothing."""
    most = 1 if size is None else 0
    return best.to(torch.promote_types(best.dtype, torch.float32)).clamp(max=most)


def _positive(score: Tensor) -> Tensor:
    """Scores above zero, also where a softmax was rounded to zero: a threshold of zero drops
    nothing."""
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    return score.clamp(min=torch.finfo(score.dtype).tiny)
