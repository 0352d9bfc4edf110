"""The interface of a source of models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Source:
    """One place that models come from.

    identify: the name of a model, None for one from elsewhere.
    arguments: what makes that model besides its name, None where that cannot be told.
    check: refuses a name and arguments that this source never writes; builds nothing.
    build: the model of that name with these arguments, and its pretrained weights or random ones.
    """

    identify: Callable[[nn.Module], str | None]
    arguments: Callable[[nn.Module], dict[str, Any] | None]
    check: Callable[[object, object], None]
    build: Callable[[str, dict[str, Any], bool], nn.Module]
