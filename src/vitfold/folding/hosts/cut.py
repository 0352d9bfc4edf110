"""What stays of visual tokens, and a projector that sees no others."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vitfold.errors import MethodError, ShapeError
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import TokenState


class Cut:
    """The cut in front of a projector, in one call.

    find: tells for each image which of its visual tokens stay, once the tower has run.
    """

    def __init__(self, find: Callable[[], list[Tensor]]) -> None:
        self._find = find

    @cached_property
    def stays(self) -> list[Tensor]:
        """For each image, which of its visual tokens stay, `[S]`."""
        return self._find()

    @cached_property
    def rows(self) -> Tensor | None:
        """The visual tokens that stay, counted over all images; None where all do."""
        stays = torch.cat(self.stays) if self.stays else torch.ones(0, dtype=torch.bool)
        return None if bool(stays.all()) else stays.nonzero().flatten()

    def take(self, x: Tensor) -> Tensor:
        """Those that stay of `x[B, S, C]`, as `[1, n, C]`, or of `x[T, C]`, as `[n, C]`."""
        total = self.shape().numel()
        if x.shape[:-1].numel() != total:
            raise ShapeError(
                f"the projector is given {x.shape[:-1].numel()} visual tokens, where the tower "
                f"made {total}: unfold it, or fold with out='restored'"
            )
        if self.rows is None:
            return x
        rows = x.flatten(0, -2)[self.rows]
        return rows.unsqueeze(0) if x.dim() == 3 else rows

    def shape(self, images: int | None = None) -> torch.Size:
        """The leading axes of all visual tokens: in one row, or in a row for each image."""
        total = sum(map(len, self.stays))
        return torch.Size((total,) if images is None else (images, total // max(images, 1)))

    def spread(self, y: Tensor, like: torch.Size) -> Tensor:
        """What was made of those that stay, at their places among all, with leading axes as in
        `like`; zeros elsewhere."""
        if self.rows is None:
            return y
        y = y.flatten(0, -2)
        blank = y.new_zeros(like.numel(), y.shape[-1])
        return blank.index_put((self.rows,), y).view(*like, -1)

    def around(self, module: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A module of tokens one by one that sees those alone that stay."""

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self.spread(module(self.take(x), *args, **kwargs), x.shape[:-1])

        return run


def survivors(state: TokenState, order: Tensor | None, area: int, prefix: bool) -> list[Tensor]:
    """For each image, which of its squares of so many patches are there still, `[S]`.

    order: `[B or 1, N]` in which the patches of a square lie together.
    prefix: whether what is no patch is told of too.
    """
    if isinstance(state, Packed) and state.beside:
        raise MethodError(
            "images that keep numbers of their own cannot be handed out reduced: freeze the "
            "method (vitfold.freeze), or fold with out='restored'"
        )
    if state.masks:
        raise MethodError("what is only masked cannot be handed out reduced: call model.eval()")
    here = _here(state)
    if order is not None:
        here = here.gather(1, order.expand(len(here), -1))
    images = here[0].split(state.originals) if isinstance(state, Packed) else here.unbind()
    first = 0 if prefix else state.prefix
    return [image[first:].unflatten(0, (-1, area))[:, 0] for image in images]


def _here(state: TokenState) -> Tensor:
    """`[B, N]`, or `[1, T]` where images are packed: which original tokens have a token still."""
    origin = state.origin
    length = sum(state.originals) if isinstance(state, Packed) else state.tokens
    rows = 1 if isinstance(state, Packed) else state.batch
    if origin is None:
        return torch.ones(rows, length, dtype=torch.bool, device=state.device)
    blank = torch.zeros(rows, length, dtype=torch.bool, device=origin.device)
    return blank.scatter(1, origin, value=True)


def selected(features: Any, stays: Sequence[Tensor]) -> Any:
    """Those that stay of the visual tokens of images: of `[B, S, D]` as many of each, or of a list
    in which one entry has those of an image, or of several."""
    if all(bool(s.all()) for s in stays):
        return features
    if isinstance(features, Tensor):
        mask = torch.stack(list(stays)).to(features.device)
        return features[mask].view(len(features), -1, features.shape[-1])
    flat = torch.cat(list(stays)).split([len(entry) for entry in features])
    pairs = zip(features, flat, strict=True)
    return [entry[mask.to(entry.device)] for entry, mask in pairs]
