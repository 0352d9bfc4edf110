"""The runtime that models are measured in: torch itself, or another one on this machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import VitfoldError
from vitfold.exporting.serve import RUNTIMES, Served, check_runtime, serve, shown

IN_TORCH = {"eager": "eager torch", "compile": "compiled torch"}
"""What torch's own ways are called; other runtimes are called as their targets say."""


@dataclass(frozen=True, eq=False)
class Runtime:
    """A runtime that models are measured in; one that is not there is refused.

    name: eager, compile, aoti, onnxruntime or openvino.
    int8: in eight bits.
    images: `[N, C, H, W]` that the ranges of eight bits are taken from; by default random ones,
        which do where speed is all that is asked.
    batch_size: the number of images that models take; None: any.
    """

    name: str = "eager"
    int8: bool = False
    images: Tensor | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_runtime(self.name, self.int8)

    def __str__(self) -> str:
        target = check_runtime(self.name, self.int8)
        words = IN_TORCH[self.name] if target is None else target.runtime
        return f"{words} INT8" if self.int8 else words

    @property
    def eager(self) -> bool:
        """Whether models run as they are."""
        return self.name == "eager"

    @property
    def in_torch(self) -> bool:
        """Whether torch runs them: on any device, in lower precision, in memory that it counts."""
        return RUNTIMES[self.name] is None

    @property
    def tags(self) -> dict[str, Any]:
        """What rows say of it."""
        return {"runtime": self.name, "int8": self.int8}

    def serve(self, model: nn.Module) -> nn.Module:
        """What the runtime makes of a model: its outputs."""
        options = {"batch_size": self.batch_size, "int8": self.int8, "images": self.images}
        return serve(model, self.name, **options)  # type: ignore[arg-type]

    def answering(self, model: nn.Module) -> nn.Module:
        """The same, for its answers: but in eager torch, these are looked for in its outputs
        alone."""
        return self.seen(self.serve(model), model)

    def seen(self, served: nn.Module, model: nn.Module) -> nn.Module:
        """What it has made of a model, for its answers."""
        return served if self.eager or isinstance(served, Served) else shown(served, model)

    def dense(self, model: nn.Module) -> nn.Module:
        """What answers are compared with: the dense model in eager torch, looked at alike."""
        return model if self.eager else shown(model, model)


def installed(device: torch.device, names: Iterable[str] = RUNTIMES) -> list[str]:
    """Those that are here and run models on that device."""
    return [name for name in names if _runs(name, device)]


def _runs(name: str, device: torch.device) -> bool:
    try:
        return Runtime(name).in_torch or device.type == "cpu"
    except VitfoldError:
        return False
