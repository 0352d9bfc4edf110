"""The interface of a source of models."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn


class Source(ABC):
    """One place that models come from.

    builds: whether a plan is enough to build its models.
    """

    builds: ClassVar[bool] = True

    @abstractmethod
    def identify(self, model: nn.Module) -> str | None:
        """The name of a model; None for one from elsewhere."""

    @abstractmethod
    def arguments(self, model: nn.Module) -> dict[str, Any] | None:
        """What makes that model besides its name; None where that cannot be told."""

    @abstractmethod
    def check(self, name: object, arguments: object) -> None:
        """Refuse a name and arguments that this source never writes; nothing is built."""

    @abstractmethod
    def build(self, name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
        """The model of that name with these arguments, and its pretrained weights or random
        ones."""
