"""The token state with which a forward pass starts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitfold.errors import MethodError
from vitfold.tokens.dense import Dense
from vitfold.tokens.layout import Grid
from vitfold.tokens.masked import Masked
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import TokenState


def start(
    x: Tensor,
    prefix: int,
    grid: Grid | None = None,
    valid: Tensor | None = None,
    *,
    lengths: Sequence[int] | None = None,
    ragged: bool = False,
    masks: bool = False,
    soft: bool = False,
) -> TokenState:
    """The state of the tokens `x[B, N, C]` that enter the first block.

    valid: `[B, N]` False for padding.
    lengths: of images that lie one after another, `x[1, T, C]`.
    ragged: whether images may lose different numbers of tokens: padding then leaves at once.
    masks: whether what leaves is only masked.
    soft: whether that is training, in which attention gets a little on top.
    """
    if lengths is not None:
        if masks:
            raise MethodError(
                "packed images cannot be masked: train on images of one length, or in eval mode"
            )
        return Packed.start(x, prefix, grid, lengths)
    dtype = torch.promote_types(x.dtype, torch.float32)
    state = Dense(x.shape[1], prefix, grid, x.shape[0], x.device, dtype, valid=valid, masks=masks)
    if masks and (soft or valid is not None):
        return Masked.of(state, soft)
    return state.ragged() if ragged and valid is not None else state
