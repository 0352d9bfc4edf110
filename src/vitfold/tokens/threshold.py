"""Matching by thresholds: every image loses as many tokens as are beyond them.

Twice: on packed tokens, which really leave, and on masked ones, where thresholds get gradients. The
two agree. Tokens are even or odd by their rank among those that are left, and keep their order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.tokens import kernels, ragged
from vitfold.tokens.kernels import NOWHERE, Side
from vitfold.tokens.masked import Mark
from vitfold.tokens.match import unit
from vitfold.tokens.tokenmap import DROPPED, TokenMap


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every even token of packed images with the odd one of its image that it resembles most.

    value: `[B, n]` by how much; minus infinity where there is none.
    gone, target: `[B, n]` which two these are.
    """

    value: Tensor
    gone: Tensor
    target: Tensor

    def above(self, threshold: float, tokens: int) -> TokenMap:
        """Those of all `tokens` merge that resemble each other by more."""
        merges = self.value > threshold
        return _leaving(self.gone[merges], self.target[merges], tokens)


def pairs(metric: Tensor, lengths: Tensor, prefix: int, size: Tensor | None = None) -> Pairs:
    """The pairs of `metric[1, T, d]`, by their cosine; with `size[1, T]`, by minus Ward's distance
    of groups of so many tokens."""
    rows, here = ragged.table(lengths)
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    unitary = unit(metric[0])[rows]
    if not unitary[:, even::2].numel() or not unitary[:, odd::2].numel():
        none = rows.new_empty(0)
        return Pairs(unitary.new_empty(0), none, none)
    sizes = None if size is None else size[0][rows]
    a, b = (
        Side(unitary[:, first::2], None if sizes is None else sizes[:, first::2], here[:, first::2])
        for first in (even, odd)
    )
    nearest = kernels.active(metric).nearest(a, b)
    target = rows.gather(1, nearest.partner(None) * 2 + odd)
    return Pairs(_bounded(nearest.best, size), rows[:, even::2], target)


def merge(
    metric: Tensor, lengths: Tensor, prefix: int, threshold: float, size: Tensor | None = None
) -> TokenMap:
    """Merge every even token of `metric[1, T, d]` that resembles an odd one of its image by more
    than the threshold."""
    return pairs(metric, lengths, prefix, size).above(threshold, metric.shape[1])


def _leaving(gone: Tensor, target: Tensor, tokens: int) -> TokenMap:
    stays = torch.ones(tokens, dtype=torch.bool, device=gone.device).index_fill(0, gone, False)
    rank = stays.cumsum(0) - 1
    keep = stays.nonzero().flatten()
    return TokenMap(keep.unsqueeze(0), gone.unsqueeze(0), rank[target].unsqueeze(0))


def prune(score: Tensor, lengths: Tensor, prefix: int, threshold: float) -> TokenMap:
    """Drop every patch of `score[1, T]` that is not above the threshold, but one of every image."""
    values = score[0]
    owner = ragged.owners(lengths, len(values))
    places = torch.arange(len(values), device=values.device)
    patch = places - ragged.starts(lengths)[owner] >= prefix
    stays = ~patch | (_positive(values) > threshold)
    left = torch.zeros_like(lengths).index_add(0, owner, (stays & patch).to(lengths.dtype))
    if bool((left == 0).any()):
        rows, here = ragged.table(lengths)
        best = values[rows].masked_fill(~(here & patch[rows]), NOWHERE).argmax(dim=1)
        last = rows.gather(1, best.unsqueeze(1))[:, 0]
        stays = stays.index_fill(0, last[left == 0], True)
    return TokenMap.dropping(places[stays].unsqueeze(0), places[~stays].unsqueeze(0))


def fold_scores(score: Tensor, step: TokenMap) -> Tensor:
    """`[1, slots]`: the highest of every slot."""
    kept = score.gather(1, step.keep)
    return (
        kept.scatter_reduce(1, step.into, score.gather(1, step.gone), "amax")
        if step.merges
        else kept
    )


def merge_masked(
    metric: Tensor,
    here: Tensor,
    prefix: int,
    threshold: Tensor,
    temperature: float,
    size: Tensor | None = None,
) -> Mark:
    """The same for `metric[B, N, d]`, of which those that are `here[B, N]` count."""
    places = torch.arange(here.shape[1], device=here.device)
    rank = here.cumsum(1) - 1
    free = here & (places >= prefix)
    even, odd = free & (rank % 2 == 0), free & (rank % 2 == 1)
    rows = unit(metric)
    scores = kernels.similarity(Side(rows, size, even), Side(rows, size, odd))
    best, partner = scores.max(dim=-1).values, kernels.first_highest(scores)
    matches = best > NOWHERE
    value = _bounded(best, size).where(matches, -1.0)
    goes = _straight(value, threshold, temperature).where(matches, 0)
    into = partner.where(goes.detach() > 0.5, places)
    return Mark(1 - goes, into, into)


def prune_masked(
    score: Tensor, here: Tensor, prefix: int, threshold: Tensor, temperature: float
) -> Mark:
    """The same for `score[B, N]`, of which those that are `here[B, N]` count."""
    places = torch.arange(here.shape[1], device=here.device)
    free = here & (places >= prefix)
    value = _positive(score)
    keep = _straight(value, threshold, temperature)
    none = ~(free & (keep.detach() > 0.5)).any(dim=1, keepdim=True)
    best = score.detach().masked_fill(~free, NOWHERE).argmax(dim=1, keepdim=True)
    saved = none & (places == best)
    keep = (keep + saved * (1 - keep.detach())).where(free, 1)
    stays = keep.detach() > 0.5
    places = places.expand_as(here)
    return Mark(keep, places.where(stays, DROPPED), places)


def fold_scores_masked(score: Tensor, step: Mark) -> Tensor:
    """`[B, N]`: the highest of every group, at the token that it went into."""
    return score.scatter_reduce(1, step.into, score, "amax")


def _straight(value: Tensor, threshold: Tensor, temperature: float) -> Tensor:
    """One where a value is above the threshold, with the gradient of a sigmoid."""
    soft = ((value - threshold) / temperature).sigmoid()
    hard = (value > threshold).to(soft.dtype)
    return hard + (soft - soft.detach())  # exactly: what is gone weighs nothing


def _bounded(best: Tensor, size: Tensor | None) -> Tensor:
    """A cosine at most one, minus a distance at most zero, where rounding has made it more: a
    threshold of so much merges nothing."""
    most = 1 if size is None else 0
    return best.to(torch.promote_types(best.dtype, torch.float32)).clamp(max=most)


def _positive(score: Tensor) -> Tensor:
    """Not zero, where rounding has made a softmax so: a threshold of zero drops nothing."""
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    return score.clamp(min=torch.finfo(score.dtype).tiny)
