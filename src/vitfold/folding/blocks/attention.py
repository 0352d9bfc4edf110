"""Attention over a reduced sequence: the module's own code, sizes as a bias, cues captured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.proxy import call, run
from vitfold.tokens.cues import PROJECTIONS
from vitfold.tokens.state import TokenState


class Attentions(Protocol):
    """What a family knows of the attention modules of its blocks."""

    def attentions(self, block: Any) -> Sequence[nn.Module]:
        """The attention modules of a block."""

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        """Overrides that hand out the queries, keys or values that a module computes."""

    def overrides(self, attention: Any, attend: "Attend", x: Tensor) -> Mapping[str, Any]:
        """Overrides of what a module computes by itself for the original tokens, such as a bias."""

    def fused(self, attention: Any) -> Mapping[str, Any]:
        """Overrides with which a module calls `scaled_dot_product_attention`."""


class Attend:
    """How one block attends in one call: what it was called with, and what it captured.

    state: the state of the tokens that it attends over.
    arguments: those that the block was called with, besides its tokens.
    proportional: whether a token of size s counts s times.
    cue: what its attention modules are to capture; `k`, `q`, `v` and `x_attn` end up in
        `captures`, one for each attention module of the block.
    received: `[B, n]` the attention that tokens received, a mean over heads and queries, once it is
        computed; None where no step asks for it.
    """

    family: Attentions
    """The family of the block, which describes its attention modules."""

    def __init__(
        self, state: TokenState, arguments: Mapping[str, Any], proportional: bool, cue: str | None
    ) -> None:
        self.state = state
        self.arguments = arguments
        self.proportional = proportional
        self.cue = cue
        self.captures: list[Tensor] = []
        self.received: Tensor | None = None

    def __call__(self, attention: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        """Run an attention module on its normalized tokens."""
        overrides = self._overrides(attention, x) | self._capture(attention)
        return self._run(attention, overrides, x, arguments)

    def by(
        self, forward: Callable[..., Tensor], attention: nn.Module, x: Tensor, **arguments: Any
    ) -> Tensor:
        """Run an attention module by another forward than its own, which takes the module first."""
        overrides = self._capture(attention) | {"forward": forward}
        return self._run(attention, overrides, x, arguments)

    def _run(
        self, attention: nn.Module, overrides: dict[str, Any], x: Tensor, arguments: dict[str, Any]
    ) -> Tensor:
        out = call(attention, overrides, x, **arguments)
        out = out[0] if isinstance(out, tuple) else out
        if self.cue == "x_attn":
            self.captures.append(out)
        return out

    def whole(self, block: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        """Run the forward of a block that attends and feeds forward in one."""
        out = run(block, "forward", self._capture(block), x, **arguments)
        if self.cue == "x_attn":  # the two share an output: what the block adds
            self.captures.append(out - x)
        return out

    @property
    def cues(self) -> Tensor:
        """`[B, n, C]` what was captured, added up over the attention modules of the block."""
        return sum(self.captures[1:], self.captures[0])

    def _capture(self, attention: nn.Module) -> dict[str, Any]:
        if self.cue not in PROJECTIONS:
            return {}
        return dict(self.family.capture(attention, str(self.cue), self.captures.append))

    def bias(self, x: Tensor, mask: str = "attn_mask") -> Tensor | None:
        """What is added to the logits: the argument `mask` of the block, and log sizes."""
        if self.arguments.get("is_causal"):
            raise UnsupportedModel("causal attention cannot be folded: call without is_causal")
        return self.join(self.arguments.get(mask), x)

    def biased(self, mask: str = "attn_mask") -> bool:
        """Whether current tokens need a bias besides one that the model makes itself."""
        if self.state.origin is None:
            return False
        sized = self.proportional and self.state.size is not None
        return sized or self.arguments.get(mask) is not None

    def join(self, bias: Tensor | None, x: Tensor) -> Tensor | None:
        """A bias over the original tokens, for the current ones, with their log sizes."""
        bias = self.state.mask(bias, x.dtype)
        size = self.sizes(x) if self.proportional else None
        if bias is None or size is None:
            return size if bias is None else bias
        return bias + size

    def sizes(self, x: Tensor) -> Tensor | None:
        """`[B, 1, 1, n]`: log sizes; None while all are one."""
        return self.state.log_size(x)

    def rope(self) -> Tensor | None:
        """The argument `rope` of the block, sines beside cosines, for the current tokens."""
        table = self.arguments.get("rope")
        if table is None:
            return None
        half = torch.arange(table.shape[-1], device=table.device) >= table.shape[-1] // 2
        return self.positions(table, half)

    def positions(self, table: Tensor, still: Tensor) -> Tensor:
        """A table over original patches, for the current tokens. `still` is the row that would turn
        nothing."""
        return self.state.positions(table, still)

    def _overrides(self, attention: Any, x: Tensor) -> dict[str, Any]:
        """Overrides of what the module computes by itself for the original tokens, once some have
        left."""
        if self.state.origin is None:
            return {}
        return dict(self.family.overrides(attention, self, x))
