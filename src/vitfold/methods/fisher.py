"""Fisher: Ward's clusters, by what the output notices of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.learned import Learned
from vitfold.methods.registry import register
from vitfold.methods.step import Plan, Step, View
from vitfold.methods.ward import Ward
from vitfold.methods.wardcut import Heights, WardCut
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState

RANK, PART = 64, 3
"""In how many directions tokens are compared: as many as keys have, and one for so many channels
at most, as tokens are projected on them."""


@register("fisher")
@dataclass(frozen=True)
class Fisher(Ward):
    """Ward that compares tokens in the directions, block by block, that the output is sensitive to:
    the first eigenvectors of the Fisher information, each as long as the fourth root of its
    eigenvalue (the Fisher metric has the square root, which few images tell less well).

    No training: `vitfold.calibrate(model, images)` finds the directions, and where tokens leave.
    Until then they are random ones.
    """

    command: ClassVar[str] = "calibrate"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_cue(self)

    def learn(self, depth: int, width: int) -> "Directions":
        return Directions(self, depth, width)


@register("fishercut")
@dataclass(frozen=True)
class FisherCut(WardCut):
    """WardCut that compares tokens as Fisher does: a number for every image.

    No training: `vitfold.calibrate(model, images)` finds directions and heights. Until then nothing
    merges.
    """

    even: ClassVar[type[Ward]] = Fisher

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_cue(self)

    def learn(self, depth: int, width: int) -> "DirectedHeights":
        return DirectedHeights(self, depth, width)


def _check_cue(method: Fisher | FisherCut) -> None:
    if method.cue != "x":
        raise MethodError(
            f"cue={method.cue!r}: {type(method).__name__} compares tokens by what the output "
            "notices of x: leave out cue, or take "
            f"{'Ward' if isinstance(method, Ward) else 'WardCut'}"
        )


class Directions(Learned):
    """What calibration of Fisher sets.

    basis: `[depth, C, rank]` what tokens are projected on before they are compared.
    """

    basis: Tensor

    def __init__(self, method: Fisher, depth: int, width: int) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("basis", at_random(depth, width))

    def constrain(self) -> None:
        """Any directions will do."""

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        return directed(self.method.plan(layout, schedule), self.basis)


class DirectedHeights(Heights):
    """What calibration of FisherCut sets: heights, and the directions of `Directions`."""

    basis: Tensor

    def __init__(self, method: FisherCut, depth: int, width: int) -> None:
        super().__init__(method, depth)
        self.register_buffer("basis", at_random(depth, width))

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        return directed(super().plan(layout, schedule), self.basis)


def rank(width: int) -> int:
    """In how many directions tokens of so many channels are compared."""
    return min(RANK, -(-width // PART))


def at_random(depth: int, width: int) -> Tensor:
    """`[depth, C, rank]` directions that keep angles between tokens about as they are."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(depth, width, rank(width), generator=generator)


def directed(plan: Sequence[Step | None], basis: Tensor) -> tuple[Step | None, ...]:
    """The steps, each comparing tokens in directions of its own."""
    return tuple(
        step and Directed(step.cue, step.removes, seed=step.seed, step=step, basis=directions)
        for step, directions in zip(plan, basis.unbind(), strict=True)
    )


@dataclass(frozen=True, eq=False)
class Directed(Step):
    """Does what another step does, by what tokens are in these directions.

    basis: `[C, rank]`.
    """

    step: Step = field(kw_only=True)
    basis: Tensor = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        cue = view.cue @ self.basis.to(view.cue.dtype)
        return self.step.reduce(x, state, replace(view, cue=cue))
