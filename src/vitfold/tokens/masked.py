"""The books of a training pass: every token stays, and a mask says which still count.

What merges and leaves is decided as in inference. The mask is differentiable, so thresholds learn.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitfold.tokens.state import Ledger
from vitfold.tokens.tokenmap import DROPPED, PackedMap, TokenMap, take


@dataclass(frozen=True, eq=False)
class Mark:
    """What a block does to masked tokens.

    keep: `[B, N]` what the mask is multiplied by: one for what stays, zero for what goes.
    into: `[B, N]` what each token becomes part of in the end: itself, another one, or -1.
    onto: `[B, N]` what it merges with: itself or another one, which may then be dropped.
    """

    keep: Tensor
    into: Tensor
    onto: Tensor

    @classmethod
    def nothing(cls, mask: Tensor) -> "Mark":
        """All stays as it is."""
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return cls(torch.ones_like(mask), places, places)

    @property
    def stays(self) -> Tensor:
        """`[B, N]`: which tokens are still themselves."""
        return self.into == torch.arange(self.into.shape[1], device=self.into.device)

    def then(self, second: "Mark") -> "Mark":
        """This followed by another, of the same tokens."""
        into = second.into.gather(1, self.into.clamp(min=0)).where(self.into >= 0, DROPPED)
        return Mark(self.keep * second.keep, into, second.onto.gather(1, self.onto))


@dataclass(frozen=True, eq=False)
class Masked(Ledger):
    """The books over all `[B, N]` original tokens. `size` is zero for what is gone.

    presence: `[B, N]` one for what still counts, zero for what is gone, with a gradient.
    weight: `[B, N]` the sizes; of what is gone, those that it had.
    target: `[B, N]` the token that each is part of now, -1 for dropped.
    soft: whether rows of attention get a little on top, as in training.
    steps: how many blocks have decided something.
    """

    presence: Tensor = field(kw_only=True)
    weight: Tensor = field(kw_only=True)
    target: Tensor = field(kw_only=True)
    soft: bool = False
    steps: int = 0

    @classmethod
    def open(
        cls,
        x: Tensor,
        prefix: int,
        grid: tuple[int, int] | None,
        valid: Tensor | None,
        soft: bool = False,
    ) -> "Masked":
        batch, tokens = x.shape[:2]
        here = x.new_ones(batch, tokens, dtype=torch.bool) if valid is None else valid
        ones = torch.ones_like(here, dtype=torch.promote_types(x.dtype, torch.float32))
        places = torch.arange(tokens, device=x.device).expand(batch, -1)
        mask, target = here.to(ones.dtype), places.where(here, DROPPED)
        return cls(
            tokens,
            prefix,
            grid,
            size=mask,
            origin=places,
            valid=here,
            presence=mask,
            weight=ones,
            target=target,
            soft=soft,
        )

    @property
    def changed(self) -> bool:
        return self.steps > 0

    @property
    def drops(self) -> bool:
        return True

    def counts(self, batch: int) -> list[int]:
        return self.here.sum(dim=1).tolist()

    def places(self, x: Tensor) -> Tensor:
        """`[B, N]`: the position of every token in its image."""
        return torch.arange(self.tokens, device=x.device).expand(x.shape[:2])

    def ranks(self, like: Tensor) -> Tensor:
        return (self.here.cumsum(1) - 1).clamp(min=0)

    def present(self, x: Tensor) -> Tensor:
        """`[B, N]`: which still count."""
        return self.here

    def unpacked(self, x: Tensor) -> Tensor:
        """As the tokens lie between blocks."""
        return x

    @property
    def whole_images(self) -> bool:
        """Whether, outside of training, no block has decided anything yet."""
        return not self.soft and not self.changed and bool(self.here.all())

    @property
    def here(self) -> Tensor:
        """`[B, N]`: whether a token still counts."""
        assert self.valid is not None
        return self.valid

    def reduce(self, x: Tensor, step: Mark) -> tuple[Tensor, "Masked"]:  # type: ignore[override]
        into = step.onto
        moves = (into != torch.arange(self.tokens, device=x.device)) & self.here
        moving = self.weight * moves
        total = self.weight.scatter_add(1, into, moving)
        joined = self.weight / total
        share = (moving / total.gather(1, into)).unsqueeze(-1).to(x.dtype)
        index = into.unsqueeze(-1).expand_as(x)
        merged = (x * joined.unsqueeze(-1).to(x.dtype)).scatter_add(1, index, x * share)
        # What goes keeps its own size and features: its gradient is that of what it was.
        here = self.here & step.stays
        books = replace(
            self,
            presence=self.presence * step.keep,
            weight=total,
            size=total * here,
            valid=here,
            target=step.into.gather(1, self.target.clamp(min=0)).where(self.target >= 0, DROPPED),
            steps=self.steps + 1,
        )
        return merged, books

    def flat(self, like: Tensor) -> TokenMap:
        """The map from the original tokens of all images to those that still count."""
        first = torch.arange(len(self.target), device=self.target.device).unsqueeze(1)
        target = (self.target + first * self.tokens).where(self.target >= 0, DROPPED)
        return TokenMap.from_parent(target.view(1, -1))

    def whole(self, like: Tensor) -> PackedMap:
        return PackedMap(self.flat(like), tuple(self.counts(len(self.target))))

    def fold(self, x: Tensor) -> Tensor:
        return x

    def unfold(self, x: Tensor) -> Tensor:
        dropped = (self.target < 0).unsqueeze(-1)
        return take(x, self.target.clamp(min=0)).where(~dropped, self._mean(x))

    def log_weight(self, like: Tensor) -> Tensor:
        """`[B, 1, 1, N]`: what proportional attention adds, of what is gone too: the mask says
        whether it counts."""
        return self.weight.log().to(like.dtype)[:, None, None]
