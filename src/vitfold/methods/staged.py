"""Base of the methods that reduce in a few blocks only."""

from dataclasses import dataclass

from vitfold.errors import MethodError
from vitfold.methods.base import Method
from vitfold.methods.checks import check_blocks, rising
from vitfold.methods.step import Step
from vitfold.tokens.layout import Layout

LEAST = 2
"""How many patches stay at least."""


@dataclass(frozen=True)
class Staged(Method):
    """Some blocks lose many tokens, the others none.

    blocks: which ones, by number from 0; the 4th, 7th and 10th of 12 where it is not given.
    """

    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", rising("blocks", self.blocks))

    @property
    def proportional(self) -> bool:
        return False

    def check(self, layout: Layout) -> None:
        check_blocks(self.blocks, layout.depth)
        stages = self.stages(layout.depth)
        numbers = self.r if isinstance(self.r, list) else []
        others = [str(b) for b, number in enumerate(numbers) if number and b not in stages]
        if others:
            raise MethodError(
                f"r={self.r}: of blocks {', '.join(others)} nothing would leave, as "
                f"{type(self).__name__} reduces in blocks {', '.join(map(str, stages))}: put the "
                "numbers there, or give blocks"
            )

    def stages(self, depth: int) -> tuple[int, ...]:
        """The blocks that reduce."""
        if self.blocks is None:
            return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))
        return self.blocks

    def most(self, patches: int) -> int:
        return max(patches - LEAST, 0)

    def spread(self, rate: float, depth: int, first: int) -> tuple[int, ...]:
        """As many on average, in the chosen blocks alone, along a ramp over those."""
        stages = [block for block in self.stages(depth) if block >= first]
        numbers = super().spread(rate * depth / max(len(stages), 1), len(stages), 0)
        by_block = dict(zip(stages, numbers, strict=True))
        return tuple(by_block.get(block, 0) for block in range(depth))

    def removes(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[int, ...]:
        """How many leave each block: of the patches that are there, two stay at least."""
        stages, patches = self.stages(layout.depth), layout.patches
        numbers = []
        for block, r in enumerate(schedule):
            numbers.append(max(min(r, patches - LEAST), 0) if block in stages else 0)
            patches -= numbers[-1]
        return tuple(numbers)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> tuple[Step | None, ...]:
        numbers = self.removes(layout, schedule)
        return tuple(self.step(number) if number else None for number in numbers)

    def step(self, removes: int) -> Step:
        """What a block does that loses so many."""
        raise NotImplementedError
