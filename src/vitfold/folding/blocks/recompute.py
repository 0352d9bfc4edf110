"""Activation checkpointing of Hugging Face's layers, which they do in the forward that a folded
block replaces. timm's trunks do it themselves, around their blocks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitfold.folding.blocks.names import maker


def checkpointed(block: Any, forward: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`forward(x)`, recomputed in the backward pass where the block is set to do so."""
    recompute = vars(block).get("_gradient_checkpointing_func")
    if recompute is None or not (block.gradient_checkpointing and block.training):
        return forward(x)
    if maker(type(block), "__call__") != "torch.nn.modules.module.Module":
        return forward(x)  # done already: some versions do it around the call
    return recompute(forward, x)
