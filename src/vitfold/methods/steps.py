"""What blocks do by a plan, and what is learned for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitfold.tokens.layout import Layout
from vitfold.tokens.masked import Mark
from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import TokenMap


@dataclass(frozen=True)
class Step:
    """What one block does between attention and MLP.

    cue: what its tokens are compared by.
    removes: how many tokens leave; of no meaning where every image keeps its own number.
    match: the map, from that cue `[B, N, d]` and the books so far.
    seed: of the cue `random`.
    received: whether `match` gets the attention `[B, N]` that tokens received, as a third argument;
        a mean over heads and queries.
    by_first: whether only what the first token, the class token, gave counts in that.
    """

    cue: str
    removes: int
    match: Callable[..., TokenMap | Mark]
    seed: int = 0
    received: bool = False
    by_first: bool = False


@dataclass(frozen=True, eq=False)
class Weave:
    """What one block does to all `N` patches, around itself: it sees mixtures of them.

    merge: `[K, N]` those mixtures.
    restore: `[N, K]` all patches, out of what the block makes of them.
    aside: `[P]` the patches that go around the block and are added to that.
    seats: `[K]` the patch whose position each mixture has.
    groups: `[N]` the mixture that each patch is part of in the main, -1 for none.
    """

    merge: Tensor
    restore: Tensor
    aside: Tensor
    seats: Tensor
    groups: Tensor


@dataclass(frozen=True, eq=False)
class Look:
    """What one block does when it is only watched.

    attend: makes what stands in for its attention, from the arguments of `Attend`.
    """

    attend: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Act:
    """What one block does to its tokens when it is through with them.

    act: the tokens and the books on them, after it; what it has to remember goes into `notes`.
    """

    act: Callable[[Tensor, Any], tuple[Tensor, Ledger]]


Plan = tuple[Step | Weave | Look | Act | None, ...]
"""What every block does."""


class Pass(Protocol):
    """What a pass through the blocks leaves.

    books: before every block, and after the last.
    width: how many channels tokens have.
    """

    books: list[Ledger]
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
        """What every block does when block i is asked to remove `schedule[i]` tokens."""
        raise NotImplementedError

    def loss(self, seen: Pass) -> Tensor:
        """What training makes small beside the loss on labels."""
        return torch.zeros(())

    def figures(self, seen: Pass) -> dict[str, Any]:
        """What a log tells of a pass: numbers, and lists with one for every block."""
        return {}

    def scale(self, by: float) -> None:
        """Reduce more (above one) or less, in all blocks alike."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Bring the parameters back into their bounds, after a step of an optimizer."""
