"""Merging among the tokens that most others resemble; what is unlike the rest stays as it is."""

import torch
from torch import Tensor

from vitfold.tokens import kernels
from vitfold.tokens.kernels import PIECE, Side, similarity
from vitfold.tokens.match import biggest_first, joining, unit
from vitfold.tokens.modes import compiling
from vitfold.tokens.tokenmap import TokenMap, take


def redundant(metric: Tensor, r: int, prefix: int, margin: float) -> TokenMap:
    """Merge `r` of the `2 r` patches of highest energy into the others of these: every second one,
    by falling energy, into what it resembles most. Tokens stay in their order.

    margin: what counts as alike, as `energies` has it.
    """
    rows = unit(metric)
    energy = energies(rows[:, prefix:], margin)
    order = biggest_first(energy, kernels.rounding(energy))[:, : 2 * r] + prefix
    first, second = order[:, 0::2], order[:, 1::2]
    sides = (Side(take(rows, places)) for places in (first, second))
    partner = kernels.active(metric).nearest(*sides).partner(None)
    return joining(first, second.gather(1, partner), rows.shape[1])


def energies(rows: Tensor, margin: float) -> Tensor:
    """`[B, n]`: how much every token resembles all of `rows[B, n, d]`, of length one, on average.

    A cosine counts as it is from the margin on, and below it as `exp(cosine - margin) - 1`. That
    of a token with itself is among them: it adds the same to all.
    """
    tokens = rows.shape[1]
    # A graph is for any number of tokens, and in one piece.
    step = tokens if compiling() else max(PIECE // max(tokens, 1), 1)
    pieces = (rows[:, start : start + step] for start in range(0, tokens, step))
    return torch.cat([_energies(piece, rows, margin) for piece in pieces], dim=1)


def _energies(some: Tensor, rows: Tensor, margin: float) -> Tensor:
    cosine = similarity(Side(some), Side(rows))
    return torch.where(cosine >= margin, cosine, (cosine - margin).exp() - 1).mean(dim=-1)
