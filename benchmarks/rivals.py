"""Two rivals whose papers leave things open, ATM and Token Transforming, in all forms tried here.

Both are written from what their papers say they do, not from their code, and live here and not in
the library: what is open is tried in several ways, and a comparison takes the form that is best on
images that do not judge. That favours them.

*ATM* (arXiv 2505.15160): every block merges all pairs that resemble each other by more than a
threshold of its own, so that every image keeps a number of its own; in the last blocks pairs are
sought between small groups and large ones, as a merge of groups of a and b tokens moves them by no
more than `a b / (a + b)` allows. Open: how the threshold falls with depth, and from which block on
sizes decide. Its level is fitted to a share of the FLOPs. Runs one image at a time.

*Token Transforming* (arXiv 2506.05709): the next tokens are products of a matrix with all of those
before, so that each goes into several. Open: which tokens the next ones are made around, how sharp
the matrix is, and in which blocks.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

import vitfold
from vitfold.folding.fold import clone
from vitfold.methods.base import Base, Method, everywhere
from vitfold.methods.staged import Staged
from vitfold.methods.step import Plan, Received, Step, View
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import joining, unit
from vitfold.tokens.state import TokenState
from vitfold.tools.measure import flops

FALLS = (0.1, 0.2, 0.3)
"""By how much the threshold of the last block is less than that of the first."""
LATE = (6, 9, 12)
"""From which block on sizes decide; 12 of 12 blocks: never."""
HALVINGS = 9
SOME = 40
"""How many images a threshold is fitted to."""

TEMPERATURES = (0.003, 0.01, 0.02)
CENTRES: tuple[Received | None, ...] = ("all", "first", None)
"""New tokens are made around those that receive most attention from all, or from the class token,
or around those that lie evenly."""


@dataclass(frozen=True)
class ATM(Base):
    """Merges what resembles each other by more than a threshold that falls with depth.

    share: of the dense FLOPs that it is fitted to.
    level: the threshold of the first block.
    fall: by how much that of the last block is less.
    late: the first block in which small groups join large ones.
    """

    name: ClassVar[str] = "atm"
    ragged: ClassVar[bool] = True

    share: float
    fall: float
    late: int
    level: float = 1.0

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """A threshold for every block."""
        last = max(layout.depth - 1, 1)
        return tuple(
            Above("k", None, threshold=self.level - self.fall * n / last, by_size=n >= self.late)
            for n in range(layout.depth)
        )


@dataclass(frozen=True)
class Above(Step):
    """Merges the pairs of one image that resemble each other by more than a threshold."""

    threshold: float = field(kw_only=True)
    by_size: bool = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """Half of the patches look for the most similar one of the other half."""
        assert state.batch == 1, "one image at a time"
        first, patches = state.prefix, x.shape[1] - state.prefix
        order = torch.arange(patches)
        if self.by_size:
            order = state.sizes()[0, first:].argsort(stable=True)
            movers, others = order[: patches // 2], order[patches // 2 :]
        else:
            movers, others = order[::2], order[1::2]
        if not len(others):
            return x, state
        rows = unit(view.cue)[0, first:]
        best, partner = (rows[movers] @ rows[others].T).max(dim=1)
        go = best > self.threshold
        if not go.any():
            return x, state
        gone, target = movers[go] + first, others[partner[go]] + first
        return state.apply(x, joining(gone[None], target[None], x.shape[1]))


def fitted(model: nn.Module, images: Tensor, share: float) -> list[ATM]:
    """Its forms, at the level at which these images cost that share."""
    forms = (ATM(share, *form) for form in itertools.product(FALLS, LATE))
    return [_fitted(model, images[:: max(1, len(images) // SOME)], form) for form in forms]


def _fitted(model: nn.Module, images: Tensor, form: ATM) -> ATM:
    dense = flops(model, images[:1])
    low, high = 0.0, 1.0 + form.fall
    for _ in range(HALVINGS):
        middle = replace(form, level=(low + high) / 2)
        cost = cost_alone(vitfold.fold(clone(model), middle), images) / dense
        low, high = (middle.level, high) if cost < form.share else (low, middle.level)
    return replace(form, level=high)


def cost_alone(model: nn.Module, images: Tensor) -> float:
    """FLOPs of an image, each by itself."""
    return sum(flops(model, image) for image in images.split(1)) / len(images)


@dataclass(frozen=True)
class Transforming(Method):
    """Every block makes its tokens anew, as mixtures around some of them.

    temperature: of the softmax over similarities; the lower, the fewer tokens one goes into.
    around: whose attention says which tokens those are; None: they lie evenly.
    """

    name: ClassVar[str] = "transforming"
    pads: ClassVar[bool] = False

    temperature: float = 0.01
    around: Received | None = "all"

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """A mixture in every block."""
        return everywhere(layout, schedule, lambda _, removes: self.mixture(removes))

    def mixture(self, removes: int) -> Step:
        """What a block does that so many tokens leave."""
        return Mixture("k", removes, received=self.around, temperature=self.temperature)


@dataclass(frozen=True)
class StagedTransforming(Staged):
    """The same in three blocks, where many tokens leave."""

    name: ClassVar[str] = "transforming-staged"
    pads: ClassVar[bool] = False

    temperature: float = 0.01
    around: Received | None = "all"

    @property
    def proportional(self) -> bool:
        """Mixtures stand for as many tokens as went into them."""
        return True

    def step(self, removes: int) -> Step:
        """What a block does that so many tokens leave."""
        return Mixture("k", removes, received=self.around, temperature=self.temperature)


@dataclass(frozen=True)
class Mixture(Step):
    """Every patch goes into the new ones by how much it resembles what they are made around."""

    temperature: float = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """Sizes are divided as tokens are; where each came to lie for the most part is kept."""
        first, patches = state.prefix, x.shape[1] - state.prefix
        assert self.removes is not None
        stay, gone = _parted(view, first, patches - self.removes)
        rows = unit(view.cue)
        near = rows[:, first:] @ _at(rows, stay).mT / self.temperature
        parts = near.softmax(dim=-1) * state.sizes()[:, first:, None]
        size = parts.sum(dim=1)
        mixed = parts.mT @ x[:, first:] / size[..., None]
        target = stay.gather(1, near.argmax(dim=-1).gather(1, gone - first))
        _, after = state.apply(x, joining(gone, target, x.shape[1]))
        size = torch.cat([after.sizes()[:, :first], size], dim=1)
        return torch.cat([x[:, :first], mixed], dim=1), replace(after, size=size)


def _at(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _parted(view: View, first: int, number: int) -> tuple[Tensor, Tensor]:
    """`[B, number]` and `[B, others]`: the patches that new tokens are made around, and those that
    leave, each in their order."""
    batch, tokens = view.cue.shape[:2]
    patches = tokens - first
    if view.received is None:
        evenly = (torch.arange(number) * patches) // number
        score = torch.zeros(batch, patches).index_fill(1, evenly, 1.0)
    else:
        score = view.received[:, first:]
    order = score.argsort(dim=1, descending=True, stable=True) + first
    return order[:, :number].sort(dim=1).values, order[:, number:].sort(dim=1).values


def transforming(share: float) -> Iterator[Method]:
    """Its forms."""
    for kind in (Transforming, StagedTransforming):
        for temperature, around in itertools.product(TEMPERATURES, CENTRES):
            yield kind(flops=share, temperature=temperature, around=around)
