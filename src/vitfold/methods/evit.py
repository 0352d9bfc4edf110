"""EViT: what the class token attends to stays, and the rest becomes one token."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vitfold.errors import MethodError
from vitfold.methods.checks import check_switch
from vitfold.methods.registry import register
from vitfold.methods.staged import Staged
from vitfold.methods.step import Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.match import by_ratio, highest
from vitfold.tokens.state import TokenState
from vitfold.tokens.tokenmap import TokenMap


@register("evit")
@dataclass(frozen=True)
class EViT(Staged):
    """Some blocks keep the patches that the class token attends to most, on average over heads, and
    fuse the others into one token, weighted by that attention.

    fuse: whether the others become a token; they are dropped otherwise.
    """

    pads: ClassVar[bool] = False

    fuse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("fuse", self.fuse)

    def check(self, layout: Layout) -> None:
        super().check(layout)
        if not layout.class_token:
            raise MethodError("EViT goes by the attention of a class token: the model has none")

    def step(self, removes: int) -> Step:
        def match(_: Tensor, state: TokenState, attention: Tensor) -> TokenMap:
            ranks, fused = by_ratio(attention)[0], attention if self.fuse else None
            return highest(ranks, removes, state.prefix, fused)

        return Step(removes=removes, match=match, received="first")
