"""Context managers for eval mode and autocast, and whether a call is recorded into a graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.compiler import is_compiling, is_exporting

_tracing = torch._C._get_tracing_state  # asked in every block, several times


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, all modules of the model are in eval mode; after it, as they were before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def mixed(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a lower precision, or none where `dtype` is None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def compiling() -> bool:
    """Whether this call is being compiled, exported or traced."""
    return is_compiling() or _tracing() is not None  # exporting is compiling, too


def recording() -> bool:
    """Whether this call is being exported or traced into a graph that other batches will run
    too."""
    return is_exporting() or _tracing() is not None
