"""ToMe: bipartite soft matching in every block."""

from dataclasses import dataclass

from vitfold.methods.checks import check_skip
from vitfold.methods.merging import Merging
from vitfold.methods.registry import register


@register("tome")
@dataclass(frozen=True)
class ToMe(Merging):
    """Every block merges its `r` most similar tokens.

    skip: how many of the first blocks stay dense.
    """

    cue: str = "k"
    skip: int = 0
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_skip(self.skip)

    def first(self, depth: int) -> int:
        return self.skip
