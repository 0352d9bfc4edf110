"""A model of time: what every block takes by its tokens, and what merging takes, fitted to a few
timings."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitfold.lab.tuning.shape import Shape
from vitfold.tokens.layout import Layout

NOISE = 0.015
"""How far a timing may be off, as a share of the dense model's time."""

AROUND = 0.03
"""What is not in blocks, as a share of the dense model's time, before anything was timed."""

MERGING = 0.04
"""What merging in every block takes, likewise."""

SPREADS = (0.05, 0.1, 0.1, 0.1, 0.06, 0.06)
"""How far the parts may be off, before anything was timed."""


@dataclass
class Costs:
    """The time of a fold as a share of the dense model's, by shapes alone.

    width: channels of the tokens.
    noise: how far off a timing may be.
    timings: what was timed: kind and parts of a fold, and its share.
    """

    layout: Layout
    width: int
    noise: float = NOISE
    timings: list[tuple[tuple[str, str], Tensor, float]] = field(default_factory=list)
    _weights: Tensor | None = None

    def add(self, shape: Shape, numbers: tuple[int, ...], share: float) -> None:
        """Learn from a fold that was timed."""
        self.timings.append((shape.kind, self._parts(shape, numbers), share))
        self._weights = None

    def share(self, shape: Shape, numbers: tuple[int, ...]) -> float:
        """What a fold is expected to take."""
        row = self._row(shape.kind, self._parts(shape, numbers))
        return float(row @ self._fitted())

    def _parts(self, shape: Shape, numbers: tuple[int, ...]) -> Tensor:
        """What a fold computes, as shares of what the dense model does: around the blocks,
        attention's layers, pairs of tokens, MLPs; and of merging in every block: how often, and
        with how many tokens."""
        depth, full = self.layout.depth, self.layout.tokens
        tokens, sums = full, [0.0] * 5
        for step in shape.plan(numbers, self.layout):
            aside, removes = (step.aside, step.removes or 0) if step else (0, 0)
            inside, merges = tokens - aside, bool(removes or aside)
            tokens -= removes
            work = (inside, inside**2 / full, inside - removes, full * merges, inside * merges)
            sums = [total + part for total, part in zip(sums, work, strict=True)]
        return torch.tensor([1.0, *(total / full / depth for total in sums)], dtype=torch.float64)

    def _row(self, kind: tuple[str, str], parts: Tensor) -> Tensor:
        """The parts, and those of merging once more for each kind, which may differ in it."""
        own = [parts[4] if kind == other else parts.new_zeros(()) for other in self._kinds]
        return torch.cat([parts, torch.stack(own)]) if own else parts

    @property
    def _kinds(self) -> list[tuple[str, str]]:
        return sorted({kind for kind, _, _ in self.timings})

    def _fitted(self) -> Tensor:
        """Weights of the parts: those that FLOPs promise, moved towards what was timed."""
        if self._weights is None:
            self._weights = self._fit()
        return self._weights

    def _fit(self) -> Tensor:
        kinds = len(self._kinds)
        before = torch.cat([self._promised(), torch.zeros(kinds, dtype=torch.float64)])
        spreads = torch.tensor([*SPREADS, *[SPREADS[-1] / 2] * kinds], dtype=torch.float64)
        dense = torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)
        rows = [self._row(("", ""), dense), *(self._row(kind, p) for kind, p, _ in self.timings)]
        matrix = torch.stack(rows)
        shares = torch.tensor([1.0, *(share for _, _, share in self.timings)], dtype=torch.float64)
        noise = torch.full_like(shares, self.noise)
        noise[0] /= 10  # the dense model takes its own time
        scaled = matrix / noise[:, None]
        both = scaled.T @ scaled + torch.diag(spreads**-2)
        off: Tensor = torch.linalg.solve(both, scaled.T @ ((shares - matrix @ before) / noise))
        return before + off

    def _promised(self) -> Tensor:
        """What the parts take by their FLOPs: of a token 8 C^2 in attention's layers, 16 C^2 in the
        MLP, and 4 n C in products with the others."""
        pairs = self.layout.tokens / (6 * self.width + self.layout.tokens)
        blocks = 1 - AROUND
        layers = blocks * (1 - pairs)
        weights = [AROUND, layers / 3, blocks * pairs, layers * 2 / 3, MERGING / 2, MERGING / 2]
        return torch.tensor(weights, dtype=torch.float64)
