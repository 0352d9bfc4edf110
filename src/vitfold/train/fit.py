"""Fit to FLOPs after a training: what a method has learned is scaled to its share.

The loss balances that share against the labels, so training ends beside it, and further away the
more the last FLOPs matter. What is left is small: all blocks reduce a little more, or less.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfold.errors import TrainError
from vitfold.folding.calls import fold_of, trunk_inputs
from vitfold.folding.fit import Fit
from vitfold.folding.flops import count
from vitfold.methods.learned import Learned
from vitfold.tokens.modes import evaluating

NEAR = 0.02
"""How far from its share a trained model may be."""

MOST = 16.0
"""How much more, at most, all blocks reduce."""

TRIES = 20
"""How often that is tried: shares of thresholds may fall steeply."""


def fit_learned(
    model: nn.Module, share: float, batches: Sequence[Tensor], *, still: bool = False
) -> tuple[float, float | None]:
    """Scale what the method of a folded model has learned, until these images cost that share of
    the dense FLOPs; the share that they cost then, and the one before.

    still: leave it as it is, and there is no share before.
    """
    learned = _learned(model)
    state = {name: values.clone() for name, values in learned.state_dict().items()}

    def scale(by: float) -> None:
        """All blocks reduce so much more than training had them."""
        learned.load_state_dict(state)
        if by != 1:
            learned.scale(by)

    def cost(by: float) -> int:
        scale(by)
        return count(lambda: [trunk(**each) for each in inputs])

    with evaluating(model), torch.inference_mode():
        trunk, inputs = fold_of(model).family.trunk, [trunk_inputs(model, each) for each in batches]
        dense = cost(0.0)
        fit = Fit[float](share, lambda by: cost(by) / dense)
        fit.costs[0.0] = 1.0
        before = share + fit.excess(1.0)
        if still:
            return before, None
        fit.along(_rounded, 1.0, MOST, tries=TRIES)
        scale(fit.best)
        return fit.nearest, before


def _rounded(by: float) -> float:
    """To three digits: processes whose figures differ by rounding come to the same."""
    return float(f"{by:.3g}")


def _learned(model: nn.Module) -> Learned:
    """What the method of a model has learned."""
    record = fold_of(model)
    if record.learned is None:
        raise TrainError(f"{record.method} learns nothing: there is nothing to fit to its share")
    return record.learned
