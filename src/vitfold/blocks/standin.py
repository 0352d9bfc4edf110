"""Running a module's own forward with some of its parts replaced, for one call only."""

from typing import Any

from torch import nn


class StandIn:
    """What a module's forward sees as `self`: the module, but for the parts given here.

    Nothing on the module changes, so calls may overlap, nest and be recomputed, and whatever the
    forward does without us it does with us.
    """

    def __init__(self, module: nn.Module, **parts: Any) -> None:
        self.__dict__.update(parts)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def run(module: nn.Module, method: str, parts: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """`module.method(*args, **kwargs)` as its class defines it, with `parts` replaced."""
    stand_in = StandIn(module, **parts) if parts else module
    return getattr(type(module), method)(stand_in, *args, **kwargs)
