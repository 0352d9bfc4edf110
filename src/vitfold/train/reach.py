"""Bringing learned thresholds to the share of the FLOPs that they were trained for.

The loss balances that share against the labels, so training ends beside it, and further away the
more the last FLOPs matter. What is left is small: all blocks reduce a little more, or less.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfold.folding.calls import fold_of, trunk_inputs
from vitfold.folding.flops import CLOSE, Tried, count
from vitfold.tokens.modes import evaluating

NEAR = 0.02
"""How far from the share is still what was asked for."""

MOST = 16.0
"""How much more, at most, all blocks reduce."""

TRIES = 12


def reach(
    model: nn.Module, share: float, batches: Sequence[Tensor], *, still: bool = False
) -> tuple[float, float | None]:
    """Scale what the method of a folded model has learned, until these images cost that share of
    the dense FLOPs; the share that they cost then, and the one before.

    still: leave it as it is, and there is no before.
    """
    trunk, learned = fold_of(model).family.trunk, fold_of(model).learned
    assert learned is not None
    state = {name: values.clone() for name, values in learned.state_dict().items()}

    def scale(by: float) -> None:
        """All blocks reduce so much more than before."""
        learned.load_state_dict(state)
        learned.scale(by)

    def cost(by: float) -> int:
        """Of all batches, then."""
        scale(by)
        return count(lambda: [trunk(**given) for given in inputs])

    with evaluating(model), torch.inference_mode():
        inputs = [trunk_inputs(model, images) for images in batches]
        dense = cost(0.0)
        low, high, by = 0.0, math.inf, 1.0
        tried = Tried[float](share, lambda by: cost(by) / dense)
        if still:
            return cost(by) / dense, None
        for _ in range(TRIES):
            above = tried.off(by) > 0
            if tried.miss <= CLOSE:
                break
            low, high = (by, high) if above else (low, by)
            if low == MOST:
                break
            by = min(2 * by, MOST) if high == math.inf else (low + high) / 2
        scale(tried.best)
        return tried.reached, tried.costs[1.0]
