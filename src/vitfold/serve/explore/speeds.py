"""Time that models take on this machine, measured when somebody asks."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from vitfold.errors import DataError
from vitfold.exporting.runtime import Runtime
from vitfold.serve.explore.cache import Cache
from vitfold.serve.explore.explorer import Explorer, Pick
from vitfold.tools.baselines import DENSE
from vitfold.tools.bench import timed_part
from vitfold.tools.measure import Progress, Throughput, compare, random_inputs

REPEATS, WARMUP = 7, 1
"""Rounds of all models in turn."""

LARGEST_BATCH = 32

SERVED, KEPT = 4, 64
"""How many models stay open in runtimes, and how many measurements are kept."""


@dataclass(frozen=True)
class Speed:
    """The time of a batch in milliseconds: median and quartiles.

    speedup: the time of the dense model over it.
    """

    name: str
    milliseconds: float
    low: float
    high: float
    speedup: float


class Stopwatch:
    """Times folds of a model beside the dense one, in turn, once for each request."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self._served: Cache[tuple[Pick | None, str], nn.Module] = Cache(SERVED)
        self._speeds: Cache[tuple[tuple[Pick, ...], str, int], list[Speed]] = Cache(KEPT)

    def known(self, picks: Sequence[Pick], runtime: str, batch: int) -> list[Speed] | None:
        """What was measured before."""
        return self._speeds.peek((tuple(picks), runtime, batch))

    def measure(
        self, picks: Sequence[Pick], runtime: str, batch: int, progress: Progress = lambda: None
    ) -> list[Speed]:
        """The dense model and these folds; random images, since speed is all that is asked.

        progress: called after every batch, `rounds(picks)` times.
        """
        if not 1 <= batch <= LARGEST_BATCH:
            raise DataError(f"a batch of {batch}: expected 1 to {LARGEST_BATCH} images")
        key = tuple(picks), runtime, batch
        return self._speeds.get(key, lambda: self._measured(picks, runtime, batch, progress))

    def _measured(
        self, picks: Sequence[Pick], runtime: str, batch: int, progress: Progress
    ) -> list[Speed]:
        served = {DENSE: self._serve(None, runtime)}
        served |= {str(pick): self._serve(pick, runtime) for pick in picks}
        inputs = random_inputs(timed_part(self.explorer.dense), batch)
        rates = compare(served, inputs, repeats=REPEATS, warmup=WARMUP, progress=progress)
        return [_speed(name, batch, rate, rates[DENSE]) for name, rate in rates.items()]

    def _serve(self, pick: Pick | None, runtime: str) -> nn.Module:
        model = self.explorer.dense if pick is None else self.explorer.folded(pick)
        make = Runtime(runtime).serve
        return self._served.get((pick, runtime), lambda: make(timed_part(model)))


def rounds(picks: Sequence[Pick]) -> int:
    """How many batches a measurement runs."""
    return (REPEATS + WARMUP) * (1 + len(picks))


def _speed(name: str, batch: int, rate: Throughput, dense: Throughput) -> Speed:
    median, least, most = (batch / images * 1e3 for images in (rate.median, rate.high, rate.low))
    return Speed(name, median, least, most, rate.median / dense.median)
