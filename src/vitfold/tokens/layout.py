"""How many tokens of which kind enter the blocks: what a plan is made from."""

from dataclasses import dataclass
from typing import Final

Grid = tuple[int, ...]
"""How many patches lie along each axis: height and width, or time, height and width."""

MANY: Final = (0, 0)
"""The grid of images that have several, or of which a graph cannot say."""


@dataclass(frozen=True)
class Layout:
    """The tokens that enter the first block, and how many blocks there are.

    tokens: all of them, prefix included; of images of several lengths, those of the longest.
    grid: of the patches, where they form one; of several, `MANY`.
    class_token: whether the first token stands for the image; registers do not.
    reads_patches: whether what is read out of the model is made of patches.
    within: where blocks see sequences of their own, such as windows, after which all tokens are
        there again: those of every block; else empty.
    square: patches along the side of the squares that leave as one; 1: every patch by itself.
    """

    tokens: int
    prefix: int
    grid: Grid | None
    depth: int
    class_token: bool = True
    reads_patches: bool = False
    within: tuple[tuple["Sequences", ...], ...] = ()
    square: int = 1

    @property
    def patches(self) -> int:
        """Tokens that may be merged or dropped."""
        return self.tokens - self.prefix


@dataclass(frozen=True)
class Sequences:
    """Sequences of an image that are alike: how many, and what is in one."""

    number: int
    layout: Layout
