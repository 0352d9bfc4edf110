"""Free slicing of blocks that see sequences of their own: each cuts off its last tokens at once,
and they are there again behind what it makes of the others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitfold.methods.base import Base
from vitfold.methods.step import Plan, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap


@dataclass(frozen=True)
class Slicing(Base):
    """Cuts off as many tokens as another method would merge."""

    restores: ClassVar[bool] = True

    @property
    def proportional(self) -> bool:
        """Nothing merges."""
        return False

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """In every block as many as the schedule says."""
        numbers = (min(r, layout.patches - 1) for r in schedule)
        return tuple(Sliced(aside=number) if number > 0 else None for number in numbers)


class Sliced(Step):
    """Cuts off the last tokens before the block, and puts them back after it."""

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """The first tokens."""
        left = x.shape[1] - self.aside
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        inside = state.apply(x, TokenMap.dropping(places[:, :left], places[:, left:]))[1]
        return x[:, :left], inside.noting((x[:, left:], state))

    def leave(self, x: Tensor, inside: TokenState) -> tuple[Tensor, TokenState]:
        """All of them."""
        rest, state = inside.notes
        return torch.cat([x, rest], dim=1), state.restored(inside.noting(None))
