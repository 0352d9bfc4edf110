"""Index tensors that are the same in every call: made once, not in every block of every call."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from vitfold.tokens.modes import compiling

MOST = 1024
"""How many are kept."""

Tensors = tuple[Tensor, ...]

_KEPT: dict[tuple[Hashable, torch.device], Tensors] = {}


def constant(key: Hashable, like: Tensor, make: Callable[[torch.device], Tensors]) -> Tensors:
    """What `make` gives on a tensor's device, made once for a key; in graphs, and for tensors
    without values, every time. Nobody may write to it."""
    if compiling() or type(like) is not Tensor:
        return make(like.device)
    place = key, like.device
    tensors = _KEPT.get(place)
    if tensors is None:
        if len(_KEPT) >= MOST:
            _KEPT.clear()
        with torch.inference_mode(False):  # they may be used in training later
            tensors = make(like.device)
        # What is made within a transform of torch.func ends with it.
        if not any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
            _KEPT[place] = tensors
    return tensors
