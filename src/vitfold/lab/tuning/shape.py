"""Shapes of folds: a method, and how what it removes is spread over the blocks."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitfold.errors import MethodError
from vitfold.methods import Base, create_method, ready
from vitfold.methods.base import planned
from vitfold.methods.fisher import Fisher
from vitfold.methods.registry import named
from vitfold.methods.schedule import along
from vitfold.methods.step import Plan
from vitfold.tokens.layout import Layout
from vitfold.tools.placing import FACTORS

KINDS = (("ward", ""), ("fisher", ""), ("tome", ""), ("ward", "k"), ("lgtm", ""))
"""Methods and cues that are tried, by themselves; an empty cue is the method's own."""

RAMPS = (-0.5, 0.0, 0.5)
EVERY = (1, 2, 3)
MULTIPLES = (1, 8)


@dataclass(frozen=True)
class Shape:
    """How a fold removes tokens; how many is one number besides.

    cue: of the method; empty for its own.
    first: the first block that removes.
    ramp: from -1, most of it early, to 1.
    every: only every so many blocks remove.
    multiple: of what the number of tokens that stay is, as vectors like it.
    factors: what the number of a block is multiplied by, block by block; all by one where there
        are none.
    """

    method: str
    cue: str = ""
    first: int = 0
    ramp: float = 0.0
    every: int = 1
    multiple: int = 1
    factors: tuple[float, ...] = ()

    @property
    def is_fine(self) -> bool:
        """Whether it differs from others in single blocks."""
        return bool(self.factors)

    @property
    def kind(self) -> tuple[str, str]:
        """The method and its cue."""
        return self.method, self.cue

    def numbers(self, rate: float, layout: Layout) -> tuple[int, ...]:
        """How many tokens every block removes, `rate` on average where any are removed."""
        places = range(self.first, layout.depth, self.every)
        numbers, left = [0] * layout.depth, layout.patches
        factors = self.factors or (1.0,) * layout.depth
        for place, even in zip(places, along(rate, self.ramp, len(places), 0), strict=True):
            wanted = even * factors[place]
            stay = max(left - round(wanted), left - left // 2)
            whole = self._rounded(stay + layout.prefix) - layout.prefix
            numbers[place] = min(max(left - whole, 0), left // 2) if wanted > 0 else 0
            left -= numbers[place]
        return tuple(numbers)

    def _rounded(self, tokens: int) -> int:
        return round(tokens / self.multiple) * self.multiple

    def fold(self, numbers: tuple[int, ...]) -> Base:
        """The method with these numbers."""
        options: dict[str, Any] = {"r": list(numbers)}
        known = {field.name for field in dataclasses.fields(named(self.method))}
        if "skip" in known:
            options["skip"] = 0  # the numbers say where it begins
        if self.cue:
            options["cue"] = self.cue
        return create_method(self.method, options)

    def plan(self, numbers: tuple[int, ...], layout: Layout) -> Plan:
        """What every block does."""
        return planned(self.fold(numbers), layout, numbers)

    def neighbours(self, depth: int) -> Iterator["Shape"]:
        """Shapes that differ in one thing by one step; single blocks come last."""
        if not self.is_fine:
            yield from self._coarse(depth)
        factors = self.factors or (1.0,) * depth
        for block in range(self.first, depth - 1, self.every):
            for factor in FACTORS if factors[block] == 1 else ():
                yield replace(self, factors=(*factors[:block], factor, *factors[block + 1 :]))

    def _coarse(self, depth: int) -> Iterator["Shape"]:
        for first in (self.first + 1, self.first - 1):
            if 0 <= first <= depth // 2:
                yield replace(self, first=first)
        for name, choices in ("ramp", RAMPS), ("every", EVERY), ("multiple", MULTIPLES):
            for value in _beside(choices, getattr(self, name)):
                yield replace(self, **{name: value})


def _beside(choices: tuple[Any, ...], value: Any) -> Iterator[Any]:
    for one, other in itertools.pairwise(choices):
        if value == one:
            yield other
        if value == other:
            yield one


def kinds_of(methods: Sequence[str] | None) -> list[tuple[str, str]]:
    """The methods that are tried, and by which cues."""
    if methods is None:
        return list(KINDS)
    known = sorted([*ready(), Fisher.name])
    if not methods:
        raise MethodError(f"methods: expected some of {', '.join(known)}")
    for name in methods:
        if named(name).name not in known:
            raise MethodError(f"{name} is not tuned: give methods among {', '.join(known)}")
    return [(named(name).name, "") for name in methods]


def outset(kind: tuple[str, str], depth: int) -> list[Shape]:
    """The shapes that a search begins with: the same number in every block, but in the first."""
    return [Shape(*kind, first=min(1, depth - 1))]


def extremes(kind: tuple[str, str], depth: int) -> Iterator[Shape]:
    """Shapes that remove as much as can be in few blocks."""
    for every in (depth, -(-depth // 2), -(-depth // 4)):
        yield Shape(*kind, every=every)
