"""The state of the tokens of one forward: how many there are, what each stands for, and where.

One interface with a file for each form that tokens take: as many for every image (`dense`), every
image its own number (`packed`), all of them with a mask (`masked`), mixtures of them (`mixing`).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vitfold.tokens.layout import Grid
from vitfold.tokens.mark import Mark
from vitfold.tokens.threshold import Pairs
from vitfold.tokens.tokenmap import PackedMap, TokenMap

Change = TokenMap | PackedMap | Mark
"""What one block does to its tokens: for all images as many, for each its own number, or a mask."""


@dataclass(frozen=True, eq=False)
class TokenState:
    """Sizes, places and history of the tokens that travel through the blocks. Immutable: what
    changes tokens makes a successor.

    tokens: how many entered the first block, prefix included; of images of several lengths, those
        of the longest.
    prefix: how many of those are class, distillation or register tokens; they never leave.
    grid: of the patches, where the tokens form one.
    batch: how many images there are.
    device: where tokens are.
    dtype: of what is counted, such as sizes: that of the tokens, but at least float32.
    size: `[B, n]` how many original tokens each stands for; None while nothing was merged.
    origin: `[B, n]` the original position that gives each token its place; None: its own.
    maps: what each block did so far.
    valid: `[B, n]` False for padding; None where nothing is padded.
    notes: what a method has to remember from block to block; of the first state, pixels where a
        method looks at them.
    masks: whether tokens that leave are only masked, as in training, so that what decides has
        gradients.
    """

    form: ClassVar[str]
    """By what name the attention that suits these tokens is known."""

    tokens: int
    prefix: int
    grid: Grid | None = None
    batch: int = 1
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32
    size: Tensor | None = None
    origin: Tensor | None = None
    maps: tuple[TokenMap, ...] = ()
    valid: Tensor | None = None
    notes: Any = None
    masks: bool = False

    @property
    def frame(self) -> dict[str, Any]:
        """The fields that stay the same from the first block to the last, by name."""
        return {
            "tokens": self.tokens,
            "prefix": self.prefix,
            "grid": self.grid,
            "batch": self.batch,
            "device": self.device,
            "dtype": self.dtype,
        }

    # How many tokens there are.

    @property
    def length(self) -> int:
        """How many tokens a row has now."""
        raise NotImplementedError

    @property
    def dense_length(self) -> int:
        """How many tokens a row has in which every original position has one."""
        return self.tokens

    @property
    def counts(self) -> list[int]:
        """How many tokens each image has."""
        raise NotImplementedError

    def left(self) -> Tensor:
        """`[B]`: how many tokens each image has; where tokens are masked, with the gradient of the
        mask."""
        return torch.tensor(self.counts, dtype=self.dtype, device=self.device)

    @property
    def changed(self) -> bool:
        """Whether tokens may have left."""
        return bool(self.maps)

    @property
    def drops(self) -> bool:
        """Whether tokens may have gone nowhere."""
        return any(step.fate != "merged" for step in self.maps)

    # What is known of each.

    def sizes(self) -> Tensor:
        """`[B, n]`: the sizes, ones while nothing was merged."""
        return self.size if self.size is not None else self._ones()

    def _ones(self) -> Tensor:
        return torch.ones(*self.shape, dtype=self.dtype, device=self.device)

    def log_size(self, like: Tensor) -> Tensor | None:
        """`[B, 1, 1, n]`: what proportional attention adds to the logits of every key."""
        if self.size is None:
            return None
        return self.size.log().to(like.dtype).view(-1, 1, 1, self.size.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """The two axes in front of channels that current tokens have."""
        return self.batch, self.length

    def places(self) -> Tensor:
        """`[B, n]`: the original position of every token in its image."""
        raise NotImplementedError

    def ranks(self) -> Tensor:
        """`[B, n]`: the place of every token among those that its image has now."""
        raise NotImplementedError

    def presence(self) -> Tensor:
        """`[B, n]`: one for what counts, zero for padding and for what a mask hides; of that, with
        its gradient."""
        return self._ones() if self.valid is None else self.valid.to(self.dtype)

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """An attention mask or bias `[..., N or 1, N]` over original tokens, for the current
        ones."""
        raise NotImplementedError

    def positions(self, table: Tensor, still: Tensor | None = None) -> Tensor:
        """A table `[..., N - prefix, D]` over original patches, for those of now. `still` is the
        row of tokens that have no position, where the prefix needs rows too."""
        raise NotImplementedError

    # From original tokens to those of now, and back.

    @property
    def whole(self) -> TokenMap | PackedMap:
        """The map from the original tokens to the current ones."""
        raise NotImplementedError

    def holds(self, x: Tensor) -> bool:
        """Whether `x` holds the current tokens, not dense ones."""
        return x.shape[:2] == self.shape

    def align(self, x: Tensor) -> "tuple[Tensor, TokenState]":
        """The current tokens, from current or from dense ones, and the state a block starts
        from."""
        return (x, self) if self.holds(x) else (self.fold(x), self)

    def fold(self, x: Tensor) -> Tensor:
        """The current tokens out of dense ones that `unfold` gave."""
        raise NotImplementedError

    def unfold(self, x: Tensor) -> Tensor:
        """Dense tokens: every original position shows the token it went into.

        A dropped position shows the mean of the surviving patches, which leaves mean and max
        pooling over the dense result as they are over the survivors.
        """
        raise NotImplementedError

    def padded(self, x: Tensor) -> "tuple[Tensor, TokenState]":
        """What there is of every token, `x[B, n, ...]`, in a row for every image, and the state of
        tokens that lie so: what matches as many tokens in every image goes by those."""
        return x, self

    def level(self, x: Tensor) -> "tuple[Tensor, TokenState]":
        """The tokens in the form that the model's head or pooling takes, and their state."""
        return x, self

    # What becomes of tokens.

    def apply(self, x: Tensor, change: Change) -> "tuple[Tensor, TokenState]":
        """The tokens after a change, and the state that says so."""
        raise NotImplementedError

    def ordered(self, x: Tensor, order: Tensor) -> "tuple[Tensor, TokenState]":
        """The tokens `x[B, n, C]` in another order, `order[B, n]`, before any of them left, and
        the state that says so."""
        raise NotImplementedError

    def ragged(self) -> "TokenState":
        """This state in a form in which every image may lose its own number of tokens: packed one
        after another, or behind a mask."""
        return self

    def alone(self, x: Tensor) -> "tuple[Tensor, TokenState]":
        """The tokens in a form in which every image attends by itself from here on, and their
        state."""
        return x, self.ragged()

    def pairs(self, metric: Tensor, by_size: bool = False, after: Change | None = None) -> Pairs:
        """Every even token of an image with the odd one that it resembles most by `metric[B, n,
        d]`; with `by_size`, large groups have to resemble each other more.

        after: a change that comes before, and is not applied yet.
        """
        raise NotImplementedError

    def merge_pairs(
        self,
        pairs: Pairs,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> Change:
        """The change that merges those above a threshold. Where tokens are masked, thresholds get
        the gradient of a sigmoid of that temperature."""
        raise NotImplementedError

    def merge_above(
        self,
        metric: Tensor,
        threshold: Tensor | float,
        temperature: float = 1.0,
        by_size: bool = False,
        after: Change | None = None,
    ) -> Change:
        """The change that merges what resembles each other by more than a threshold."""
        pairs = self.pairs(metric, by_size, after)
        return self.merge_pairs(pairs, threshold, temperature, after)

    def drop_below(
        self,
        score: Tensor,
        threshold: Tensor | float,
        temperature: float = 1.0,
        after: Change | None = None,
    ) -> Change:
        """The change that drops every patch whose `score[B, n]` is not above a threshold, but one
        of every image."""
        raise NotImplementedError

    def join(self, heads: Tensor) -> Change:
        """The change in which every token becomes part of that at `heads[B, n]` of its image, which
        is itself where it stays."""
        raise NotImplementedError

    def keep(self, keep: Tensor) -> Change:
        """The change that drops the tokens whose `keep[B, n]` is zero; of masked ones, the mask has
        its gradient."""
        raise NotImplementedError

    def keep_best(self, score: Tensor, left: int) -> Change:
        """The change that drops all patches but the `left` of highest `score[B, n]`."""
        raise NotImplementedError

    def restored(self, within: "TokenState") -> "TokenState":
        """This state again, after a block that saw the tokens of `within` instead."""
        return self

    def noting(self, notes: object) -> Self:
        """This state with other notes."""
        return replace(self, notes=notes)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as a bias: zero, or minus infinity where nothing is attended to. A bias
    stays."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def four(table: Tensor) -> Tensor:
    """A table or mask with leading axes of one, so that it has all of `[B, H, N, D]`."""
    while table.dim() < 4:
        table = table.unsqueeze(0)
    return table


def pick(table: Tensor, index: Tensor, dim: int) -> Tensor:
    """Entries `index[B, n]` of `table[B or 1, H, R, K]` along `dim`, unless that axis is one."""
    if table.shape[dim] == 1:
        return table
    shape = [index.shape[0], *table.shape[1:]]
    shape[dim] = index.shape[1]
    view = [index.shape[0], 1, 1, 1]
    view[dim] = index.shape[1]
    full = [index.shape[0], *table.shape[1:]]
    return table.expand(full).gather(dim, index.view(view).expand(shape))
