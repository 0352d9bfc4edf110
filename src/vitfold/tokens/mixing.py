"""The state of patches that matrices mix: in a block that sees mixtures, and behind it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitfold.tokens.dense import Dense
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import DROPPED, TokenMap


@dataclass(frozen=True, eq=False)
class Mixture:
    """How `N` patches become mixtures for a block, alike for all images, and come back.

    merge: `[K, N]` the mixtures.
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

    @property
    def leave(self) -> Tensor:
        """`[N, K + P]`: all patches, out of what there is behind the block."""
        patches = torch.arange(len(self.restore), device=self.aside.device).unsqueeze(1)
        around = (patches == self.aside).to(self.restore.dtype)
        return torch.cat([self.restore, around], dim=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixtures(Dense):
    """The prefix and the mixtures, while a block sees them: each has the place of one patch.

    around: `[B, P, C]` the patches that go around the block.
    """

    mixture: Mixture
    around: Tensor | None

    @property
    def whole(self) -> TokenMap:
        """The map that comes nearest to the matrices: each patch goes to its main mixture; those
        that go around the block count as dropped."""
        seats, groups = self.mixture.seats, self.mixture.groups
        first = torch.arange(self.prefix, device=groups.device)
        places = seats[groups.clamp(min=0)] + self.prefix
        parent = torch.cat([first, places.where(groups >= 0, DROPPED)])
        return TokenMap.from_parent(parent.expand(self.batch, -1))

    def behind(self, x: Tensor) -> "tuple[Tensor, Behind]":
        """The tokens behind the block, with those that went around it, and their state."""
        assert self.around is not None  # it is there until the block ends
        within = replace(self, around=None)
        behind = Behind(**self.frame, within=within)
        return torch.cat([x, self.around], dim=1), behind


@dataclass(frozen=True, eq=False, kw_only=True)
class Behind(Dense):
    """The prefix, the mixtures of the block before and the patches that went around it.

    within: the state that the block had.
    """

    within: Mixtures

    @property
    def mixture(self) -> Mixture:
        """How the block before mixed the patches."""
        return self.within.mixture

    @property
    def length(self) -> int:
        return self.within.length + len(self.mixture.aside)

    @property
    def counts(self) -> list[int]:
        return self.within.counts

    @property
    def whole(self) -> TokenMap:
        return self.within.whole

    def align(self, x: Tensor) -> tuple[Tensor, TokenState]:
        return (x, self) if self.holds(x) else (x, self._start())

    def _start(self) -> Dense:
        """The state of the patches, once they are there again."""
        return Dense(**self.frame)

    def unfold(self, x: Tensor) -> Tensor:
        end = self.within.length
        patches = self.mixture.restore.to(x.dtype) @ x[:, self.prefix : end]
        patches = patches.index_add(1, self.mixture.aside, x[:, end:].to(patches.dtype))
        return torch.cat([x[:, : self.prefix], patches], dim=1)

    def level(self, x: Tensor) -> tuple[Tensor, TokenState]:
        """All patches again."""
        return self.unfold(x), self._start().restored(self.within)


def mix(x: Tensor, state: TokenState, mixture: Mixture) -> tuple[Tensor, Mixtures]:
    """The prefix and the mixtures that a block sees of all patches, or of what the block before
    left of them; and their state, which keeps what goes around."""
    if isinstance(state, Behind):
        leave = state.mixture.leave
        both = torch.cat([mixture.merge @ leave, leave[mixture.aside]])
        rows = both.to(x.dtype) @ x[:, state.prefix :]
    else:
        patches = x[:, state.prefix :]
        around = patches.index_select(1, mixture.aside)
        rows = torch.cat([mixture.merge.to(x.dtype) @ patches, around], dim=1)
    number = len(mixture.seats)
    first = torch.arange(state.prefix, device=x.device)
    origin = torch.cat([first, mixture.seats + state.prefix]).expand(x.shape[0], -1)
    around = rows[:, number:]
    inside = Mixtures(**state.frame, origin=origin, mixture=mixture, around=around)
    return torch.cat([x[:, : state.prefix], rows[:, :number]], dim=1), inside


def unmix(x: Tensor, state: TokenState, restore: bool) -> tuple[Tensor, TokenState]:
    """The output of a block that saw mixtures, with the patches that went around it: as all patches
    again with `restore`, or where that takes no more tokens; else as it is."""
    assert isinstance(state, Mixtures)  # the block was entered with it
    x, behind = state.behind(x)
    return behind.level(x) if restore or behind.length >= behind.tokens else (x, behind)
