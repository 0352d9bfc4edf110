"""Modes of modules and of computing, for a while; and whether a call is recorded."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def evaluating(model: nn.Module) -> AbstractContextManager[Any]:
    """The model in eval mode, every module back as it was afterwards."""
    return _Evaluating(model) if model.training else nullcontext()


def mixed(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Computing in a lower precision, where there is one."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def recording() -> bool:
    """Whether a call is made into a graph, which is to hold for other batches too."""
    return torch.compiler.is_exporting() or bool(torch._C._get_tracing_state())


class _Evaluating:
    def __init__(self, model: nn.Module) -> None:
        self.training = [module for module in model.modules() if module.training]

    def __enter__(self) -> None:
        for module in self.training:
            module.training = False

    def __exit__(self, *error: object) -> None:
        for module in self.training:
            module.training = True
