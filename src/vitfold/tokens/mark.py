"""What a block does to masked tokens: the counterpart of a `TokenMap` where no token leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.tokens.tokenmap import DROPPED


@dataclass(frozen=True, eq=False)
class Mark:
    """Which tokens count from here on, and what the others become part of.

    keep: `[B, N]` what the mask is multiplied by: one for what stays, zero for what goes.
    into: `[B, N]` what each token becomes part of in the end: itself, another one, or -1.
    onto: `[B, N]` what it merges with: itself or another one, which may then be dropped.
    """

    keep: Tensor
    into: Tensor
    onto: Tensor

    @classmethod
    def dropping(cls, keep: Tensor) -> "Mark":
        """What `keep[B, N]` is zero for is dropped; its gradient is that of the mask."""
        places = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        return cls(keep, places.where(keep.detach() > 0.5, DROPPED), places)

    @property
    def stays(self) -> Tensor:
        """`[B, N]`: which tokens are still themselves."""
        return self.into == torch.arange(self.into.shape[1], device=self.into.device)

    def then(self, second: "Mark") -> "Mark":
        """This followed by another, of the same tokens."""
        into = second.into.gather(1, self.into.clamp(min=0)).where(self.into >= 0, DROPPED)
        return Mark(self.keep * second.keep, into, second.onto.gather(1, self.onto))

    def take(self, values: Tensor) -> Tensor:
        """Values of the tokens that stay: of all, which are all still there."""
        return values

    def fold_max(self, score: Tensor) -> Tensor:
        """`[B, N]`: the highest score of every group, at the token that it merges with."""
        return score.scatter_reduce(1, self.onto, score, "amax")
