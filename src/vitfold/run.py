"""One forward pass of a folded model: the state that travels, and the one folded block."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from vitfold import cues
from vitfold.blocks.attention import Attend
from vitfold.blocks.kinds import Kind
from vitfold.errors import FoldError
from vitfold.layout import Layout
from vitfold.ledger import Ledger
from vitfold.methods import Method, Step

Shape = Literal["reduced", "dense at the end", "dense"]
"""Which blocks hand out one token for every original position: none, the last, all."""


@dataclass(eq=False)
class Run:
    """One forward pass. Made anew for every call, so calls may overlap.

    books: the ledger that each block starts from. A block that is run again (activation
        checkpointing) finds the one it started from, and writes the same successor.
    """

    method: Method
    schedule: tuple[int, ...]
    prefix: int
    grid: tuple[int, int] | None
    shape: Shape = "reduced"
    valid: Tensor | None = None
    books: list[Ledger] = field(default_factory=list)
    plan: tuple[Step | None, ...] = ()

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return len(self.schedule)

    @property
    def last(self) -> Ledger:
        """The books after the last block that ran."""
        return self.books[-1]

    def start(self, x: Tensor) -> None:
        """Open the books on the tokens that enter the first block."""
        tokens = x.shape[1]
        patches = tokens - self.prefix
        grid = self.grid if self.grid and self.grid[0] * self.grid[1] == patches else None
        layout = Layout(tokens, self.prefix, grid, self.depth)
        self.plan = self.method.plan(layout, self.schedule)
        self.books[:] = [Ledger(tokens, self.prefix, grid, valid=self.valid)]

    def block(
        self, index: int, block: nn.Module, kind: Kind, x: Tensor, given: Mapping[str, Any]
    ) -> Tensor:
        """The one folded block: attend, reduce, feed forward."""
        if index == 0:
            self.start(x)
        ledger, step = self.books[index], self.plan[index]
        before = reduced(x, ledger, index)
        cue = step.cue if step else None
        attend = Attend(ledger, given, self.method.proportional, cue)
        x = kind.attend(block, before, attend)
        if step and kind.feed:
            x, ledger = reduce(x, ledger, step, before, attend)
        x = kind.feed(block, x) if kind.feed else x
        if step and not kind.feed:
            x, ledger = reduce(x, ledger, step, before, attend)
        self.books[index + 1 :] = [ledger]
        return ledger.unfold(x) if self.shows(index, block) else x

    def shows(self, index: int, block: nn.Module) -> bool:
        """Whether what leaves a block is dense: when it is asked for, or when somebody looks."""
        if self.shape == "dense" or any(map(watches, block._forward_hooks.values())):
            return True
        return self.shape == "dense at the end" and index == self.depth - 1


def watches(hook: object) -> bool:
    """Whether a forward hook looks at what leaves a block. Those that transformers leaves behind
    do so only in calls that ask for hidden states, and those are dense."""
    return getattr(hook, "__module__", None) != "transformers.utils.output_capturing"


def reduced(x: Tensor, ledger: Ledger, index: int) -> Tensor:
    """The tokens of now, from those or from dense ones."""
    if x.shape[1] == ledger.now:
        return x
    if x.shape[1] != ledger.tokens:
        raise FoldError(
            f"block {index} was given {x.shape[1]} tokens, expected {ledger.now} or, dense, "
            f"{ledger.tokens}: a model that adds tokens on the way cannot be folded"
        )
    return ledger.fold(x)


def reduce(
    x: Tensor, ledger: Ledger, step: Step, before: Tensor, attend: Attend
) -> tuple[Tensor, Ledger]:
    """Fewer tokens, and the books that say so."""
    return ledger.reduce(x, step.match(metric(step, x, before, attend), ledger))


def metric(step: Step, x: Tensor, before: Tensor, attend: Attend) -> Tensor:
    """`[B, n, d]`: the cue of a step, without gradient."""
    if step.cue == "x":
        return x.detach()
    if step.cue == "x_pre":
        return before.detach()
    if step.cue == "random":
        return cues.random(before, step.seed)
    return sum(attend.shown[1:], attend.shown[0]).detach()
