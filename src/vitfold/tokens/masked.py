"""The state of a training pass: every token stays, and a mask says which still count.

What merges and leaves is decided as in inference. The mask is differentiable, so thresholds learn.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.tokens import threshold as matching
from vitfold.tokens.mark import Mark
from vitfold.tokens.match import NOWHERE, smallest_first
from vitfold.tokens.state import Change, TokenState
from vitfold.tokens.threshold import Pairs
from vitfold.tokens.tokenmap import DROPPED, PackedMap, TokenMap, take


@dataclass(frozen=True, eq=False)
class Masked(TokenState):
    """All `[B, N]` original tokens. `size` is zero for what is gone.

    here: `[B, N]` whether a token still counts.
    count: `[B, N]` the same as one or zero, with a gradient.
    weight: `[B, N]` the sizes; of what is gone, those that it had.
    target: `[B, N]` the token that each is part of now, -1 for dropped.
    soft: whether rows of attention get a little on top, as in training.
    steps: how many blocks have decided something.
    """

    form: ClassVar[str] = "masked"

    here: Tensor = field(kw_only=True)
    count: Tensor = field(kw_only=True)
    weight: Tensor = field(kw_only=True)
    target: Tensor = field(kw_only=True)
    soft: bool = False
    steps: int = 0

    @classmethod
    def of(cls, state: TokenState, soft: bool = False) -> "Masked":
        """The masked state of dense tokens, none of which has left yet."""
        if state.changed:
            raise MethodError(NOT_ASKED)
        places, ones = state.places(), state._ones()
        here = ones > 0 if state.valid is None else state.valid
        count, target = here.to(ones.dtype), places.where(here, DROPPED)
        return cls(
            **state.frame,
            size=count,
            origin=places,
            valid=here,
            masks=True,
            notes=state.notes,
            here=here,
            count=count,
            weight=ones,
            target=target,
            soft=soft,
        )

    @property
    def length(self) -> int:
        return self.tokens

    @property
    def changed(self) -> bool:
        return self.steps > 0

    @property
    def drops(self) -> bool:
        return True

    @property
    def counts(self) -> list[int]:
        counts: list[int] = self.here.sum(dim=1).tolist()
        return counts

    def left(self) -> Tensor:
        return self.count.sum(dim=1)

    def presence(self) -> Tensor:
        return self.count

    def places(self) -> Tensor:
        return torch.arange(self.tokens, device=self.device).expand(self.batch, -1)

    def ranks(self) -> Tensor:
        return (self.here.cumsum(1) - 1).clamp(min=0)

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return mask

    def positions(self, table: Tensor, still: Tensor | None = None) -> Tensor:
        return table

    @property
    def whole(self) -> PackedMap:
        return PackedMap(self._flat(), tuple(self.counts))

    def _flat(self) -> TokenMap:
        """The map from the original tokens of all images to those that still count."""
        first = torch.arange(self.batch, device=self.device).unsqueeze(1)
        target = (self.target + first * self.tokens).where(self.target >= 0, DROPPED)
        return TokenMap.from_parent(target.view(1, -1))

    def fold(self, x: Tensor) -> Tensor:
        return x

    def unfold(self, x: Tensor) -> Tensor:
        dropped = (self.target < 0).unsqueeze(-1)
        return take(x, self.target.clamp(min=0)).where(~dropped, self._mean(x))

    def _mean(self, x: Tensor) -> Tensor:
        """`[B, 1, C]`: the mean of the patches that still count, weighted by size."""
        weight = (self.sizes() * self.here)[:, self.prefix :].unsqueeze(-1)
        total = (x[:, self.prefix :] * weight).sum(1, keepdim=True)
        return (total / weight.sum(1, keepdim=True).clamp(min=1e-6)).to(x.dtype)

    def log_weight(self, like: Tensor) -> Tensor:
        """`[B, 1, 1, N]`: what proportional attention adds, of what is gone too: the mask says
        whether it counts."""
        return self.weight.log().to(like.dtype)[:, None, None]

    def apply(self, x: Tensor, change: Change) -> tuple[Tensor, TokenState]:
        if not isinstance(change, Mark):
            raise MethodError(NOT_ASKED)
        into = change.onto
        moves = (into != torch.arange(self.tokens, device=x.device)) & self.here
        moving = self.weight * moves
        total = self.weight.scatter_add(1, into, moving)
        joined = self.weight / total
        share = (moving / total.gather(1, into)).unsqueeze(-1).to(x.dtype)
        index = into.unsqueeze(-1).expand_as(x)
        merged = (x * joined.unsqueeze(-1).to(x.dtype)).scatter_add(1, index, x * share)
        # What goes keeps its own size and features: its gradient is that of what it was.
        return merged, self._then(change, total)

    def _then(self, change: Mark, weight: Tensor) -> "Masked":
        here = self.here & change.stays
        moved = change.into.gather(1, self.target.clamp(min=0))
        return replace(
            self,
            count=self.count * change.keep,
            weight=weight,
            size=weight * here,
            valid=here,
            here=here,
            target=moved.where(self.target >= 0, DROPPED),
            steps=self.steps + 1,
        )

    def pairs(self, metric: Tensor, by_size: bool = False, after: Change | None = None) -> Pairs:
        rows, here = self._table(after)
        size = self.weight.gather(1, rows) if by_size else None
        pairs = matching.pairs(take(metric, rows), here, self.prefix, size)
        return Pairs(pairs.value, rows.gather(1, pairs.even), rows.gather(1, pairs.odd))

    def merge_pairs(
        self,
        pairs: Pairs,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> Mark:
        goes = pairs.above(threshold, temperature)
        keep = torch.ones_like(self.count, dtype=goes.dtype).scatter(1, pairs.even, 1 - goes)
        target = pairs.odd.where(goes.detach() > 0.5, pairs.even)
        into = self.places().scatter(1, pairs.even, target)
        return _following(after, Mark(keep, into, into))

    def drop_below(
        self,
        score: Tensor,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> Mark:
        rows, here = self._table(after)
        score = score if after is None else after.fold_max(score)
        table = matching.keeps(score.gather(1, rows), here, self.prefix, threshold, temperature)
        keep = torch.ones_like(table).scatter(1, rows, table)
        return _following(after, Mark.dropping(keep))

    def _table(self, after: Change | None) -> tuple[Tensor, Tensor]:
        """`[B, N]`: the tokens that still count in their order, then the others; and which of those
        places hold one."""
        here = self.here & after.stays if isinstance(after, Mark) else self.here
        rows = smallest_first((~here).int())
        return rows, here.gather(1, rows)

    def join(self, heads: Tensor) -> Mark:
        stays = heads == self.places()
        return Mark(stays.to(self.count.dtype), heads, heads)

    def keep(self, keep: Tensor) -> Mark:
        return Mark.dropping(keep)

    def keep_best(self, score: Tensor, left: int) -> Mark:
        patches = score.masked_fill(~self.here, NOWHERE)[:, self.prefix :]
        return Mark.dropping(F.pad(matching.best(patches, left), (self.prefix, 0), value=1.0))


NOT_ASKED = (
    "tokens are masked in training, and a step removes them: let it ask the token state what to "
    "drop or merge (merge_above, drop_below, keep, keep_best)"
)


def _following(after: Change | None, mark: Mark) -> Mark:
    return after.then(mark) if isinstance(after, Mark) else mark
