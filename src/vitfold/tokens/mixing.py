"""The books of patches that matrices mix: after a block that saw mixtures, and before the next."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import DROPPED, TokenMap


@dataclass(frozen=True, eq=False, kw_only=True)
class Woven(Ledger):
    """Tokens are the prefix, the mixtures of the last block and the patches that went around it; or
    all the original ones again.

    restore: `[N, K]` all patches, out of the mixtures.
    aside: `[P]` the patches that went around.
    seats: `[K]` the patch whose place each mixture has.
    groups: `[N]` the mixture that each patch is part of in the main, -1 for none.
    dense: whether the patches are there again.
    """

    restore: Tensor
    aside: Tensor
    seats: Tensor
    groups: Tensor
    dense: bool = False

    @property
    def now(self) -> int:
        return self.tokens if self.dense else self.prefix + len(self.seats) + len(self.aside)

    @property
    def leave(self) -> Tensor:
        """`[N, K + P]`: all patches, out of what there is."""
        patches = torch.arange(len(self.restore), device=self.aside.device).unsqueeze(1)
        around = (patches == self.aside).to(self.restore.dtype)
        return torch.cat([self.restore, around], dim=1)

    def counts(self, batch: int) -> list[int]:
        return [self.prefix + len(self.seats)] * batch

    def whole(self, like: Tensor) -> TokenMap:
        """The map that comes nearest: what goes around goes nowhere in it."""
        first = torch.arange(self.prefix, device=self.groups.device)
        seats = self.seats[self.groups.clamp(min=0)] + self.prefix
        parent = torch.cat([first, seats.where(self.groups >= 0, DROPPED)])
        return TokenMap.from_parent(parent.expand(like.shape[0], -1))

    def fold(self, x: Tensor) -> Tensor:
        """Nothing to do: a block that mixes takes dense tokens too."""
        return x

    def unfold(self, x: Tensor) -> Tensor:
        if self.dense:
            return x
        seen = self.prefix + len(self.seats)
        patches = self.restore.to(x.dtype) @ x[:, self.prefix : seen]
        patches = patches.index_add(1, self.aside, x[:, seen:].to(patches.dtype))
        return torch.cat([x[:, : self.prefix], patches], dim=1)

    def level(self, x: Tensor) -> tuple[Tensor, "Ledger"]:
        return self.unfold(x), replace(self, dense=True)

    def plain(self) -> Ledger:
        """The books on the tokens that are there again."""
        return Ledger(self.tokens, self.prefix, self.grid)
