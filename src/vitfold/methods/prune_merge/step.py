"""What a block of PruneMerge does: it sees mixtures of patches, which are restored after it."""

from dataclasses import dataclass, field

from torch import Tensor

from vitfold.methods.step import Step
from vitfold.tokens.mixing import Mixture, mix, unmix
from vitfold.tokens.state import TokenState


@dataclass(frozen=True, eq=False)
class Mix(Step):
    """Mixes patches before the block, and restores them after it.

    mixture: the matrices.
    restores: whether the next block takes all patches; it takes what this one leaves otherwise.
    """

    mixture: Mixture = field(kw_only=True)
    restores: bool = field(kw_only=True)

    def enter(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        return mix(x, state, self.mixture)

    def leave(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        return unmix(x, state, self.restores)
