"""One forward pass of a folded model: the state that travels, and the one folded block."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfold.errors import FoldError, MethodError
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.masked import MaskedAttend
from vitfold.folding.blocks.own import FirstAttend, OwnAttend, ScoredAttend
from vitfold.folding.blocks.packed import PackedAttend
from vitfold.methods.base import Base
from vitfold.methods.steps import Act, Learned, Look, Plan, Step, Weave
from vitfold.tokens import cues
from vitfold.tokens.layout import MANY, Layout
from vitfold.tokens.masked import Masked
from vitfold.tokens.mixing import Woven
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import Ledger

Shape = Literal["reduced", "dense at the end", "dense"]
"""Which blocks hand out one token for every original position: none, the last, all."""

Form = Literal["alike", "packed", "masked"]
"""How tokens travel: as many for every image, as many as each image has left, or all of them with a
mask."""

BOOKS: dict[Form, type[Ledger]] = {"alike": Ledger, "packed": Packed, "masked": Masked}

ATTENDS: dict[Form, type[OwnAttend]] = {
    "alike": ScoredAttend,
    "packed": PackedAttend,
    "masked": MaskedAttend,
}


class Run:
    """One forward pass. Made anew for every call, so calls may overlap.

    No dataclass: torch copies those on their way into a block that is sharded, books and all.

    blocks: those of the trunk.
    learned: what the method has learned, where it learns.
    soft: whether a mask is to have gradients that do not vanish.
    width: how many channels tokens have.
    arguments: what the trunk was called with, by name, where the run is watched.
    books: the ledger that each block starts from. A block that is run again (activation
        checkpointing) finds the one it started from, and writes the same successor.
    """

    def __init__(
        self,
        method: Base,
        schedule: tuple[int, ...],
        layout: Layout,
        blocks: Sequence[nn.Module],
        learned: Learned | None,
        form: Form,
        *,
        soft: bool,
    ) -> None:
        self.method, self.schedule, self.layout = method, schedule, layout
        self.blocks, self.learned, self.form, self.soft = blocks, learned, form, soft
        self.shape: Shape = "reduced"
        self.valid: Tensor | None = None
        self.books: list[Ledger] = []
        self.plan: Plan = ()
        self.width = 0
        self.arguments: Mapping[str, Any] = {}

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return self.layout.depth

    @property
    def prefix(self) -> int:
        """How many tokens of a sequence are not patches."""
        return self.layout.prefix

    @property
    def last(self) -> Ledger:
        """The books after the last block that ran."""
        return self.books[-1]

    def start(self, x: Tensor) -> None:
        """Open the books on the tokens that enter the first block."""
        tokens, self.width = x.shape[1:]
        whole = tokens == self.layout.tokens  # and so the grid is that of these tokens
        layout = replace(self.layout, tokens=tokens, grid=self.layout.grid if whole else None)
        if self.learned is None:
            self.plan = self.method.plan(layout, self.schedule)
        elif x.shape[0] == 0:  # no image, and no token to ask
            self.plan = (None,) * self.depth
        else:
            self.plan = self.learned.plan(layout, self.schedule)
        acts = any(step is not None for step in self.plan)
        if acts:
            self._check_images()
        self._check(layout.patches)
        self.books[:] = [BOOKS[self.form].open(x, self.prefix, layout.grid, self.valid, self.soft)]

    def _check_images(self) -> None:
        """Refuse images that the method does not take."""
        name = type(self.method).__name__
        graph = " (in a graph they may be, where there is a mask)" * torch.compiler.is_compiling()
        if self.valid is not None and not self.method.pads:
            raise MethodError(f"{name} cannot take padded images{graph}: use ToMe")
        if self.layout.grid == MANY and self.method.gridded:
            raise MethodError(
                f"{name} cannot take images of several shapes in one call{graph}: use ToMe"
            )

    def _check(self, patches: int) -> None:
        """Refuse a plan that leaves no patch."""
        if self.form != "alike":
            return
        for index, step in enumerate(self.plan):
            removes = step.removes if isinstance(step, Step) else 0
            if removes and removes >= patches:
                raise MethodError(
                    f"{type(self.method).__name__} removes {removes} of {patches} patches in block "
                    f"{index}: its plan has to leave one at least"
                )
            patches -= removes

    def block(
        self, index: int, block: nn.Module, kind: BlockKind, x: Tensor, given: Mapping[str, Any]
    ) -> Tensor:
        """The one folded block: attend, reduce, feed forward."""
        if index == 0:
            self.start(x)
        if index >= len(self.books):
            raise FoldError(
                f"block {index} was called before block {index - 1}: a model that leaves out "
                "blocks, or calls them in another order, cannot be folded"
            )
        step = self.plan[index]
        if isinstance(step, Weave):
            return self.weave(index, block, kind, x, given, step)
        act, step = (step, None) if isinstance(step, Act) else (None, step)
        x, ledger = self._first_half(index, block, kind, x, given, step)
        x = kind.feed(block, x) if kind.feed else x
        if act:
            x, ledger = act.act(x, ledger)
        self.books[index + 1 :] = [ledger]
        if self.shows(index):
            return ledger.unfold(x)
        if index == self.depth - 1:
            x, self.books[-1] = ledger.level(x)
        return x

    def _first_half(
        self,
        index: int,
        block: nn.Module,
        kind: BlockKind,
        x: Tensor,
        given: Mapping[str, Any],
        step: Step | Look | None,
    ) -> tuple[Tensor, Ledger]:
        """Attend, and reduce; what that looks at is gone when the block feeds forward."""
        ledger = self.books[index].plain()
        before = reduced(x, ledger, index)
        if isinstance(step, Look):
            attend = step.attend(ledger, given, self.method.proportional, None)
            return kind.attend(block, before, attend), ledger
        attend = self.attend(ledger, given, step)
        if isinstance(ledger, Packed) and step and step.received:
            before = ledger.pack(before)
        x = kind.attend(block, before, attend)
        return reduce(x, ledger, step, before, attend) if step else (x, ledger)

    def weave(
        self,
        index: int,
        block: nn.Module,
        kind: BlockKind,
        x: Tensor,
        given: Mapping[str, Any],
        step: Weave,
    ) -> Tensor:
        """A block that sees mixtures of patches: in, both halves, and around."""
        patches = mixed(x, self.books[index], step, index)
        before = torch.cat([x[:, : self.prefix], patches[:, : len(step.seats)]], dim=1)
        x = kind.attend(block, before, self.attend(self._seen(step, before), given, None))
        x = kind.feed(block, x) if kind.feed else x
        x = torch.cat([x, patches[:, len(step.seats) :]], dim=1)
        ledger: Ledger = self._woven(step)
        again = index + 1 < self.depth and isinstance(self.plan[index + 1], Weave)
        if not again or self.shows(index) or ledger.now >= ledger.tokens:
            x, ledger = ledger.level(x)
        self.books[index + 1 :] = [ledger]
        return x

    def _seen(self, step: Weave, x: Tensor) -> Ledger:
        """The books on mixtures while a block sees them: each has the place of one patch."""
        first = torch.arange(self.prefix, device=x.device)
        origin = torch.cat([first, step.seats + self.prefix]).expand(x.shape[0], -1)
        return Ledger(self.books[0].tokens, self.prefix, self.books[0].grid, origin=origin)

    def _woven(self, step: Weave) -> Woven:
        start = self.books[0]
        return Woven(
            tokens=start.tokens,
            prefix=self.prefix,
            grid=start.grid,
            restore=step.restore,
            aside=step.aside,
            seats=step.seats,
            groups=step.groups,
        )

    def attend(self, ledger: Ledger, given: Mapping[str, Any], step: Step | None) -> Attend:
        """How a block attends, and what it shows."""
        cue, received = (step.cue, step.received) if step else (None, False)
        if isinstance(ledger, Packed | Masked) and ledger.whole_images and not received:
            dense = Ledger(ledger.tokens, self.prefix, ledger.grid)
            return Attend(dense, given, self.method.proportional, cue)
        if self.form == "alike" and not received:
            return Attend(ledger, given, self.method.proportional, cue)
        if step and step.by_first:
            return FirstAttend(ledger, given, self.method.proportional, cue, received)
        return ATTENDS[self.form](ledger, given, self.method.proportional, cue, received)

    def shows(self, index: int) -> bool:
        """Whether what leaves a block is dense: when it is asked for, or when somebody looks at
        that, or at what enters the next block."""
        if self.shape == "dense" or any(map(watches, self.blocks[index]._forward_hooks.values())):
            return True
        if index == self.depth - 1:
            return self.shape == "dense at the end"
        return any(map(watches, self.blocks[index + 1]._forward_pre_hooks.values()))


def watches(hook: object) -> bool:
    """Whether a hook looks at the tokens of a block. Those that transformers leaves behind do so
    only in calls that ask for hidden states, and those are dense; sharding moves weights."""
    whose = getattr(hook, "__module__", None) or ""
    return not whose.startswith(("transformers.utils.output_capturing", "torch.distributed."))


def reduced(x: Tensor, ledger: Ledger, index: int) -> Tensor:
    """The tokens of now, from those or from dense ones."""
    if ledger.holds(x):
        return x
    if x.shape[1] != ledger.tokens:
        raise FoldError(
            f"block {index} was given {x.shape[1]} tokens, expected {ledger.now} or, dense, "
            f"{ledger.tokens}: a model that adds tokens on the way cannot be folded"
        )
    return ledger.fold(x)


def mixed(x: Tensor, ledger: Ledger, step: Weave, index: int) -> Tensor:
    """`[B, K + P, C]`: the mixtures that a block sees, and the patches that go around it; from
    dense tokens, or straight from those that the block before handed on."""
    patches = x[:, ledger.prefix :]
    if isinstance(ledger, Woven) and not ledger.dense and ledger.holds(x):
        leave = ledger.leave
        both = torch.cat([step.merge @ leave, leave[step.aside]])
        return both.to(x.dtype) @ patches
    reduced(x, ledger.plain(), index)
    around = patches.index_select(1, step.aside)
    return torch.cat([step.merge.to(x.dtype) @ patches, around], dim=1)


def reduce(
    x: Tensor, ledger: Ledger, step: Step, before: Tensor, attend: Attend
) -> tuple[Tensor, Ledger]:
    """Fewer tokens, and the books that say so."""
    seen = [metric(step, x, before, attend, ledger)]
    if step.received and isinstance(attend, OwnAttend) and attend.received is not None:
        seen.append(attend.received)
    if not isinstance(ledger, Masked):
        seen = [part.detach() for part in seen]
    if isinstance(ledger, Packed):
        seen = [ledger.pack(part) for part in seen]
    change: Any = step.match(seen[0], ledger, *seen[1:])
    return ledger.reduce(x, change)


def metric(step: Step, x: Tensor, before: Tensor, attend: Attend, ledger: Ledger) -> Tensor:
    """`[B, n, d]`: the cue of a step."""
    if step.cue == "x":
        return x
    if step.cue == "x_pre":
        return before
    if step.cue == "random":
        return cues.random(ledger.ranks(x), step.seed).to(x.dtype)
    return attend.cues
