"""DFE: a dense feature extractor before the merging begins."""

from dataclasses import dataclass

from vitfold.methods.base import check_skip, register
from vitfold.methods.merging import Merging


@register("dfe")
@dataclass(frozen=True)
class DFE(Merging):
    """ToMe after `skip` dense blocks (default: a sixth of the depth)."""

    skip: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip is not None:
            check_skip(self.skip)

    def first(self, depth: int) -> int:
        return depth // 6 if self.skip is None else self.skip
