"""Ward: merge what moves least, and most of it early."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vitfold.ledger import Ledger
from vitfold.match import bipartite
from vitfold.methods.base import Step, register
from vitfold.methods.tome import ToMe
from vitfold.tokenmap import TokenMap


@register("ward")
@dataclass(frozen=True)
class Ward(ToMe):
    """ToMe that compares the very tokens that merge, and asks more of large groups.

    A pair costs `(1 - cosine) * sqrt(a b / (a + b))` for groups of `a` and `b` original tokens:
    Ward's criterion for clusters, whose weight is softened, as a wide background may go on growing.
    With `flops`, more merges early: it saves in every later block, so fewer need to merge.
    """

    slope: ClassVar[float] = -0.5

    cue: str = "x"

    def merge(self, block: int, r: int) -> Step:
        def match(metric: Tensor, ledger: Ledger) -> TokenMap:
            return bipartite(metric, r, ledger.prefix, ledger.valid, ledger.size)

        return Step(self.cue, r, match, self.seed + block)
