"""Modes of modules and of computing, for a while; and whether a call is recorded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of the model in eval mode, and back as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def mixed(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Computing in a lower precision, where there is one."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def compiling() -> bool:
    """Whether a call is made into a graph of any kind."""
    return torch.compiler.is_compiling() or recording()


def recording() -> bool:
    """Whether a call is made into a graph, which is to hold for other batches too."""
    return torch.compiler.is_exporting() or bool(torch._C._get_tracing_state())
