"""Speed of a candidate beside the dense model and the free-slicing bound."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitfold.folding.inputs import Inputs, images_in
from vitfold.tokens.modes import mixed
from vitfold.tools.baselines import BOUND, DENSE, FOLDED
from vitfold.tools.bench import beyond_bound
from vitfold.tools.measure import compare

AGAIN = 2
"""How often what cannot be is measured again."""


@dataclass(frozen=True)
class Speed:
    """Images per second at one batch size.

    speedup: the time of the dense model over its own.
    share: the time of free slicing over its own, where it folds.
    steady: False where that share is impossible, so that the machine must have been busy.
    """

    batch_size: int
    images_per_second: float
    speedup: float
    share: float | None
    steady: bool = True


@dataclass(frozen=True)
class Timing:
    """How candidates are timed, and on which inputs.

    inputs: as many images as are asked for.
    sample: the images that the mean number of tokens is of, where it depends on them.
    """

    inputs: Callable[[int], Inputs]
    sizes: tuple[int, ...]
    repeats: int
    amp: torch.dtype | None
    sample: Inputs | None = None

    def speeds(self, models: Mapping[str, nn.Module]) -> tuple[Speed, ...]:
        """The speed at every batch size, of the candidate, or of the dense model alone.

        models: `DENSE`, the candidate as `FOLDED`, and `BOUND` where it folds.
        """
        return tuple(self._steady_speed(models, size) for size in self.sizes)

    def _steady_speed(self, models: Mapping[str, nn.Module], size: int) -> Speed:
        """The first speed that can be, or the last that was measured."""
        speed = self._speed(models, size)
        for _ in range(AGAIN):
            if speed.steady:
                break
            speed = self._speed(models, size)
        return speed

    def _speed(self, models: Mapping[str, nn.Module], size: int) -> Speed:
        inputs = self.inputs(size)
        with mixed(images_in(inputs).device, self.amp):
            rates = compare(models, inputs, repeats=self.repeats, warmup=1)
        rate = rates.get(FOLDED, rates[DENSE]).median
        share = rate / rates[BOUND].median if BOUND in rates else None
        return Speed(size, rate, rate / rates[DENSE].median, share, not beyond_bound(share))


def busy(speeds: Mapping[str, Sequence[Speed]]) -> str | None:
    """In words, which of these speeds no machine can have."""
    names = [name for name, some in speeds.items() if not all(speed.steady for speed in some)]
    if not names:
        return None
    return (
        f"the machine was busy: nothing is faster than the bound, and {', '.join(names)} came out "
        f"faster, {AGAIN + 1} times in a row; run it again when the machine is quiet"
    )
