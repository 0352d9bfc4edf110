"""What every method is: a frozen dataclass of what the user chose, that plans what blocks do."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vitfold.errors import MethodError
from vitfold.methods.checks import check_inflection, check_reduction, check_share, plain
from vitfold.methods.learned import Learned
from vitfold.methods.recipe import MethodRecipe
from vitfold.methods.schedule import Reduction, along
from vitfold.methods.squares import by_squares, fewer, layout_of_squares
from vitfold.methods.step import Apart, Plan, Step
from vitfold.tokens.layout import Layout


@dataclass(frozen=True)
class Base:
    """Base of all methods: a value whose `plan` gives the step of each block."""

    name: ClassVar[str]

    ragged: ClassVar[bool] = False
    """Whether every image keeps its own number of tokens."""

    masks: ClassVar[bool] = False
    """Whether training passes only mask what would leave; so it is where it is ragged."""

    pads: ClassVar[bool] = True
    """Whether it takes images of which some patches are padding."""

    gridded: ClassVar[bool] = False
    """Whether its plan follows from the grid of patches, which all images then have in common."""

    restores: ClassVar[bool] = False
    """Whether as many tokens leave every image as was said before, and each of them merges, so that
    all can be there again after a block, as windows need."""

    looks: ClassVar[bool] = False
    """Whether it looks at the pixels of patches: the notes of the first state hold them then."""

    command: ClassVar[str] = ""
    """The command that looks at images for what it takes; empty where it takes nothing."""

    sought: ClassVar[tuple[str, ...]] = ()
    """What that takes and the method does not, by name."""

    training: ClassVar[MethodRecipe] = MethodRecipe()
    """How it is trained, where the user says nothing else."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, plain(getattr(self, f.name)))

    def __str__(self) -> str:
        """The method's name with the options that differ from their defaults."""
        named = [
            f"{f.name}={value!r}"
            for f in dataclasses.fields(self)
            if f.repr and (value := getattr(self, f.name)) != f.default
        ]
        return f"{type(self).__name__}({', '.join(named)})"

    @property
    def proportional(self) -> bool:
        """Whether a token of size s counts s times in attention."""
        return True

    def first(self, depth: int) -> int:
        """The first block that reduces."""
        return 0

    def check(self, layout: Layout) -> None:
        """Refuse a model that this method cannot reduce."""

    def learn(self, depth: int, width: int) -> Learned | None:
        """The module that a method learns for a model of so many blocks and channels, which then
        plans in its place; None where it learns nothing."""
        return None

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """The step of every block where block i is to remove `schedule[i]` tokens."""
        raise NotImplementedError

    def fixed(self, merged: Sequence[int], dropped: Sequence[int]) -> "Base | None":
        """The method that removes such fixed numbers, alike for all images, as this ragged one does
        on average; None where there is none."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Name and options, as JSON has them."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name} | {k: v for k, v in options.items() if v is not None}


def has_fixed(method: Base) -> bool:
    """Whether a ragged method has a counterpart with fixed numbers."""
    return type(method).fixed is not Base.fixed


def learns(method: type[Base]) -> bool:
    """Whether a method has something to train."""
    return method.learn is not Base.learn


@dataclass(frozen=True)
class Method(Base):
    """Base of the methods that remove a number of tokens that is known before.

    r: tokens to remove per block: an int, a list (a number for every block, zeros left out at the
       end) or `(r, inflection)`, a ramp.
    flops: the share of the FLOPs of the dense vision transformer to reach, in place of `r`; what
        else a model does, a text tower or a decoder, costs what it costs.
    inflection: of the ramp along which `flops` spreads what leaves, as that of `(r, inflection)`:
        from -1, most of it early, to 1 (default: 0, the same in every block).
    """

    by_share: ClassVar[bool] = True
    """Whether `flops` is taken in place of `r`."""

    r: Reduction | None = field(default=None, hash=False)
    flops: float | None = field(default=None, kw_only=True)
    inflection: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by_share and (self.r is None or self.flops is not None):
            raise MethodError(f"{type(self).__name__} takes r, not flops: give r")
        if (self.r is None) == (self.flops is None):
            which = "neither" if self.r is None else "both"
            ramp = " (a ramp goes with flops as inflection)" if isinstance(self.r, tuple) else ""
            raise MethodError(
                f"{type(self).__name__} takes r or flops, got {which}: give one{ramp}"
            )
        if self.r is not None:
            check_reduction(self.r)
        if self.flops is not None:
            check_share(self.flops)
        if self.inflection is not None:
            check_inflection(self.inflection)
            if self.flops is None:
                raise MethodError(
                    f"inflection={self.inflection!r} goes with flops: with r, give (r, inflection)"
                )

    def most(self, patches: int) -> int:
        """How many of so many patches may leave one block."""
        return patches // 2

    def spread(self, rate: float, depth: int, first: int) -> tuple[int, ...]:
        """`rate` tokens a block on average, from block `first` on, as `flops` spreads them."""
        return along(rate, self.inflection or 0.0, depth, first)

    def to_json(self) -> dict[str, Any]:
        """Name and options. A ramp keeps its two parts apart from a list."""
        options = super().to_json()
        if isinstance(self.r, tuple):
            options["r"] = dict(zip(RAMP, self.r, strict=True))
        return options


RAMP = ("r", "inflection")
"""The parts of a ramp in JSON."""


def everywhere(
    layout: Layout, schedule: tuple[int, ...], step: Callable[[int, int], Step]
) -> tuple[Step | None, ...]:
    """A plan in which all blocks do the same: `step(block, removes)`, or nothing where none
    leave."""
    patches = layout.patches
    steps: list[Step | None] = []
    for block, r in enumerate(schedule):
        removes = min(r, patches // 2)  # at most half can leave
        patches -= removes
        steps.append(step(block, removes) if removes else None)
    return tuple(steps)


def planned(method: Base | Learned, layout: Layout, schedule: tuple[int, ...]) -> Plan:
    """The step of every block. Where blocks see sequences of their own, each block is planned as
    the only one that reduces, since all tokens come back after it. Where patches leave by squares,
    it is planned for those."""
    if layout.square > 1:
        plan = method.plan(layout_of_squares(layout), fewer(schedule, layout))
        return by_squares(plan, layout)
    if not layout.within:
        return method.plan(layout, schedule)
    return tuple(_apart(method, layout, block, r) for block, r in enumerate(schedule))


def _apart(method: Base | Learned, layout: Layout, block: int, r: int) -> Apart | None:
    """Of each sequence leaves the share of its patches that `r` is of those of the image, rounded
    up."""
    steps, aside = [], 0
    for part in layout.within[block]:
        schedule = [0] * layout.depth
        schedule[block] = -(-r * part.layout.patches // max(layout.patches, 1))
        step = method.plan(part.layout, tuple(schedule))[block]
        steps.append(step)
        aside += part.number * ((step.removes or 0) + step.aside if step else 0)
    return Apart(aside=aside, steps=tuple(steps)) if any(steps) else None
