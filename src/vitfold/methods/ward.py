"""Ward: merge what moves least."""

from dataclasses import dataclass
from typing import ClassVar

from vitfold.methods.registry import register
from vitfold.methods.tome import ToMe


@register("ward")
@dataclass(frozen=True)
class Ward(ToMe):
    """ToMe that compares the very tokens that merge, and asks more of large groups.

    A pair costs `(1 - cosine) * sqrt(a b / (a + b))` for groups of `a` and `b` original tokens:
    Ward's criterion for clusters, whose weight is softened, as a wide background may go on growing.
    ATM (arXiv 2505.15160) bounds what a merge costs by the same coefficient.
    """

    by_size: ClassVar[bool] = True

    cue: str = "x"
