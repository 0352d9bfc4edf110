"""One forward pass of a folded model: the states of its tokens, and the one folded block."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfold.errors import FoldError, MethodError
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.forms import attention_of
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.methods.base import Base, planned
from vitfold.methods.learned import Learned
from vitfold.methods.step import Apart, Plan, Step, View
from vitfold.tokens import cues
from vitfold.tokens.dense import Rejoined
from vitfold.tokens.layout import MANY, Layout
from vitfold.tokens.regions import Part, Regions
from vitfold.tokens.start import start
from vitfold.tokens.state import TokenState

Shape = Literal["reduced", "dense at the end", "dense"]
"""Which blocks hand out one token for every original position: none, the last, all."""

Form = Literal["alike", "packed", "masked"]
"""How tokens leave: as many of every image, as many of each as it comes to, or behind a mask."""


class Run:
    """One forward pass of a folded trunk. Made anew for every call, so calls may overlap.

    No dataclass: torch copies those on their way into a block that is sharded, states and all.

    blocks: those of the trunk.
    learned: what the method has learned, where it learns.
    soft: whether a mask is to have gradients that do not vanish.
    valid: `[B, N]` False for padding; None where nothing is padded.
    lengths: of images that come one after another, `[1, T, C]`; None where they lie side by side.
    width: how many channels tokens have.
    pixels: `[B, patches, D]` of every patch, where the method looks at them.
    order: `[B or 1, N]` in which tokens go through the blocks, where squares of patches leave as
        one and do not lie together; None: as they come.
    visible: blocks that hand out dense tokens whatever the others do.
    arguments: what the trunk was called with, by name, where the run is watched.
    states: of the tokens, one that each block starts from and one at the end. A block that is run
        again (activation checkpointing) finds its own, and writes the same successor.
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
        self.lengths: Sequence[int] | None = None
        self.pixels: Tensor | None = None
        self.order: Tensor | None = None
        self.visible: frozenset[int] = frozenset()
        self.states: list[TokenState] = []
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
    def last(self) -> TokenState:
        """The state after the last block that ran."""
        return self.states[-1]

    def start(self, x: Tensor) -> None:
        """Plan for the tokens that enter the first block, and begin their states."""
        tokens, self.width = x.shape[1:]
        if self.lengths is not None:
            tokens = max(self.lengths, default=0)
        layout = self.layout
        if tokens != layout.tokens:  # and so the grid is not that of these tokens
            layout = replace(layout, tokens=tokens, grid=None)
        if self.learned is not None and x.shape[0] == 0:  # no image, and no token to ask
            self.plan = (None,) * self.depth
        else:
            self.plan = planned(self.learned or self.method, layout, self.schedule)
        if any(step is not None for step in self.plan):
            self._check_images()
        self._check(layout.patches)
        first = start(
            x,
            self.prefix,
            layout.grid,
            self.valid,
            lengths=self.lengths,
            ragged=self.form == "packed",
            masks=self.form == "masked",
            soft=self.soft,
        )
        self.states[:] = [first if self.pixels is None else first.noting(self.pixels)]

    def _check_images(self) -> None:
        """Refuse images that the method does not take."""
        name = type(self.method).__name__
        graph = " (in a graph they may be, where there is a mask)" * torch.compiler.is_compiling()
        if self.valid is not None and not self.method.pads:
            raise MethodError(f"{name} cannot take padded images{graph}: use ToMe")
        if self.lengths is not None and not self.method.pads:
            raise MethodError(f"{name} cannot take packed images: use ToMe")
        if self.layout.grid == MANY and self.method.gridded:
            raise MethodError(
                f"{name} cannot take images of several shapes in one call{graph}: use ToMe"
            )

    def _check(self, patches: int) -> None:
        """Refuse a plan that leaves no patch."""
        if self.form != "alike" or self.layout.within:
            return
        for index, step in enumerate(self.plan):
            removes = (step and step.removes) or 0
            if removes and removes >= patches:
                raise MethodError(
                    f"{type(self.method).__name__} removes {removes} of {patches} patches in block "
                    f"{index}: its plan has to leave one at least"
                )
            patches -= removes

    def block(
        self,
        index: int,
        block: nn.Module,
        kind: BlockKind,
        x: Tensor,
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """The one folded block: enter, attend, reduce, feed forward, leave."""
        if index == 0:
            self.start(x if kind.regions is None else kind.regions.joined(x))
        if index >= len(self.states):
            raise FoldError(
                f"block {index} was called before block {index - 1}: a model that leaves out "
                "blocks, or calls them in another order, cannot be folded"
            )
        step, state = self.plan[index], self.states[index]
        if kind.regions is not None:
            return self._in_regions(index, block, kind, kind.regions, x, arguments)
        plain = not state.changed and state.shape[0] == state.batch
        if step is None and plain:  # the order of tokens matters to nobody
            return self._through(index, block, kind, x, arguments)
        return kind.behind(self._through(index, block, kind, kind.ahead(x), arguments))

    def _in_regions(
        self,
        index: int,
        block: nn.Module,
        kind: BlockKind,
        regions: Regions,
        x: Tensor,
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """A block on the sequences that attend each by itself, after which all tokens are there
        again; its own forward where it reduces nothing."""
        step, first = self.plan[index], self.states[0]
        if not isinstance(step, Apart):
            self.states[index + 1 :] = [first]
            return kind.dense(block, x, arguments)
        grid, seen = self.layout.grid or (), regions.turned(x)
        parts = regions.parts(grid)
        sequences = [
            self._sequences(block, kind, part, seen, arguments, own)
            for part, own in zip(parts, step.steps, strict=True)
        ]
        spots = tuple(regions.places(part, grid, x.device) for part in parts)
        states = tuple(state for _, state in sequences)
        self.states[index + 1 :] = [Rejoined(**first.frame, within=states, spots=spots)]
        x = regions.together([rows for rows, _ in sequences], grid)
        return x if kind.behind_regions is None else kind.behind_regions(block, x)

    def _sequences(
        self,
        block: nn.Module,
        kind: BlockKind,
        part: Part,
        x: Tensor,
        arguments: Mapping[str, Any],
        step: Step | None,
    ) -> tuple[Tensor, TokenState]:
        """Sequences that are alike through a block: all of their tokens, and the state they had."""
        rows = part.apart(x)
        rows, state = self._pass(
            block, kind, rows, start(rows, part.prefix, part.grid), arguments, step
        )
        return state.unfold(rows), state

    def _pass(
        self,
        block: nn.Module,
        kind: BlockKind,
        x: Tensor,
        state: TokenState,
        arguments: Mapping[str, Any],
        step: Step | None,
    ) -> tuple[Tensor, TokenState]:
        """Both halves of a block, and its step before, between and after them."""
        if step is not None:
            x, state = step.enter(x, state)
        x, state = self._first_half(block, kind, x, state, arguments, step)
        x = kind.second(block, x, arguments)
        return (x, state) if step is None else step.leave(x, state)

    def _through(
        self,
        index: int,
        block: nn.Module,
        kind: BlockKind,
        x: Tensor,
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """The block on tokens of which the prefix comes first."""
        step = self.plan[index]
        x, state = aligned(x, self.states[index], index)
        if index == 0 and self.order is not None and any(step is not None for step in self.plan):
            x, state = state.ordered(x, self.order.expand(x.shape[0], -1))
        x, state = self._pass(block, kind, x, state, arguments, step)
        self.states[index + 1 :] = [state]
        if self.shows(index):
            return state.unfold(x)
        if index == self.depth - 1:
            x, self.states[-1] = state.level(x)
        return x

    def _first_half(
        self,
        block: nn.Module,
        kind: BlockKind,
        x: Tensor,
        state: TokenState,
        arguments: Mapping[str, Any],
        step: Step | None,
    ) -> tuple[Tensor, TokenState]:
        """Attention, and the step that reduces tokens after it; what the step looks at is freed
        before the MLP runs."""
        attend = attention_of(state, arguments, self.method.proportional, step)
        after = kind.attend(block, x, attend)
        if step is None:
            return after, state
        return step.reduce(after, state, view(step, x, after, attend, state))

    def shows(self, index: int) -> bool:
        """Whether the output of a block is dense: when the caller needs that, or when a hook looks
        at it or at the input of the next block."""
        if self.shape == "dense" or index in self.visible:
            return True
        if _any_watches(self.blocks[index]._forward_hooks):
            return True
        if index == self.depth - 1:
            return self.shape == "dense at the end"
        return _any_watches(self.blocks[index + 1]._forward_pre_hooks)


def _any_watches(hooks: Mapping[int, object]) -> bool:
    return bool(hooks) and any(map(watches, hooks.values()))


def watches(hook: object) -> bool:
    """Whether a hook looks at the tokens of a block. Those that transformers leaves behind do so
    only in calls that ask for hidden states, and those are dense; sharding moves weights."""
    whose = getattr(hook, "__module__", None) or ""
    return not whose.startswith(("transformers.utils.output_capturing", "torch.distributed."))


def aligned(x: Tensor, state: TokenState, index: int) -> tuple[Tensor, TokenState]:
    """The current tokens, from current or from dense ones, and the state that a block starts
    from."""
    if not state.holds(x) and x.shape[1] != state.dense_length:
        raise FoldError(
            f"block {index} was given {x.shape[1]} tokens, expected {state.length} or, dense, "
            f"{state.dense_length}: a model that adds tokens on the way cannot be folded"
        )
    return state.align(x)


def view(step: Step, before: Tensor, x: Tensor, attend: Attend, state: TokenState) -> View:
    """What the attention of a block hands to its step. Decisions have no gradient, except behind a
    mask."""
    cue, received = metric(step, before, x, attend, state), attend.received
    if not state.masks:
        cue = cue.detach()
        received = None if received is None else received.detach()
    return View(cue, received, before)


def metric(step: Step, before: Tensor, x: Tensor, attend: Attend, state: TokenState) -> Tensor:
    """`[B, n, d]`: the cue that a step compares tokens by."""
    if step.cue == "x":
        return x
    if step.cue == "x_pre" or step.cue is None:
        return before
    if step.cue == "random":
        return cues.random(state.ranks(), step.seed).to(x.dtype)
    return attend.cues
