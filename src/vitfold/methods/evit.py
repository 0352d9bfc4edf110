"""EViT: what the class token attends to stays, and the rest becomes one token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.layout import Layout
from vitfold.ledger import Ledger
from vitfold.match import biggest_first
from vitfold.methods.base import (
    Method,
    Step,
    check_blocks,
    check_switch,
    register,
    whole_numbers,
)
from vitfold.tokenmap import TokenMap


@register("evit")
@dataclass(frozen=True)
class EViT(Method):
    """Some blocks keep the patches that the class token attends to most, on average over heads, and
    fuse the others into one token, weighted by that attention.

    blocks: which ones, by number from 0; the 4th, 7th and 10th of 12 where it is not given.
    fuse: whether the others become a token; they are dropped otherwise.
    """

    blocks: tuple[int, ...] | None = None
    fuse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("fuse", self.fuse)
        object.__setattr__(self, "blocks", whole_numbers("blocks", self.blocks))

    @property
    def proportional(self) -> bool:
        return False

    def check(self, layout: Layout) -> None:
        check_blocks(self.blocks, layout.depth)
        if not layout.prefix:
            raise MethodError("EViT goes by the attention of a class token: the model has none")

    def chosen(self, depth: int) -> tuple[int, ...]:
        """The blocks that reduce."""
        if self.blocks is None:
            return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))
        return self.blocks

    def spread(self, rate: float, depth: int, first: int) -> tuple[int, ...]:
        """As many on average, in the chosen blocks alone, along a ramp over those."""
        chosen = [block for block in self.chosen(depth) if block >= first]
        numbers = super().spread(rate * depth / max(len(chosen), 1), len(chosen), 0)
        by_block = dict(zip(chosen, numbers, strict=True))
        return tuple(by_block.get(block, 0) for block in range(depth))

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        chosen, patches = self.chosen(layout.depth), layout.patches
        steps: list[Step | None] = []
        for block, r in enumerate(schedule):
            removes = min(r, patches - 2) if block in chosen else 0
            patches -= max(removes, 0)
            steps.append(self._step(removes) if removes > 0 else None)
        return tuple(steps)

    def _step(self, r: int) -> Step:
        def match(_: Tensor, ledger: Ledger, attention: Tensor) -> TokenMap:
            if ledger.valid is not None:
                raise MethodError("EViT cannot take padded images: use ToMe")
            return keep_first(attention, r, ledger.prefix, self.fuse)

        return Step("x_pre", r, match, received=True, by_first=True)


def keep_first(attention: Tensor, r: int, prefix: int, fuse: bool) -> TokenMap:
    """The map to the prefix, the patches of most `attention[B, N]` in their order and, if the
    others fuse, one token of them, so that `r` fewer are left."""
    order = biggest_first(attention[:, prefix:]) + prefix
    kept = order.shape[1] - r - fuse
    first = torch.arange(prefix, device=attention.device).expand(attention.shape[0], -1)
    stay = torch.cat([first, order[:, :kept].sort(dim=1).values], dim=1)
    if not fuse:
        return TokenMap.dropping(stay, order[:, kept:])
    keep = torch.cat([stay, order[:, kept : kept + 1]], dim=1)
    gone = order[:, kept + 1 :]
    weight = attention.clamp(min=torch.finfo(attention.dtype).tiny)
    return TokenMap(keep, gone, torch.full_like(gone, prefix + kept), weight=weight)
