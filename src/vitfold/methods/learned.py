"""What a method learns: parameters on the trunk, which plan in the method's place."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitfold.methods.step import Plan
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState


class Pass(Protocol):
    """What is known after a pass through the blocks.

    states: of the tokens before every block, and after the last.
    width: how many channels tokens have.
    """

    states: list[TokenState]
    plan: Plan
    width: int


HALVES = (torch.float16, torch.bfloat16)


class Learned(nn.Module):
    """What a method learns: parameters, and what blocks do by them. They stay in single precision
    where a model goes to half of it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Learned":
        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in HALVES else moved

        super()._apply(precise, recurse)  # type: ignore[no-untyped-call]
        return self

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """The step of every block where block i is to remove `schedule[i]` tokens."""
        raise NotImplementedError

    def loss(self, run: Pass) -> Tensor:
        """The method's own term, which is added to the loss on labels."""
        return torch.zeros(())

    def figures(self, run: Pass) -> dict[str, Any]:
        """What a log states of a pass: numbers, and lists with one for every block."""
        return {}

    def scale(self, by: float) -> None:
        """Reduce more (above one) or less, in all blocks alike."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Bring the parameters back into their bounds, after a step of an optimizer."""


def mean_counts(states: Sequence[TokenState]) -> list[float]:
    """How many tokens an image has in each state, on average over a batch."""
    means = [state.left().detach().double().mean() for state in states]
    counts: list[float] = torch.stack(means).tolist()
    return counts
