"""Running a module's own forward with some of its parts replaced, for one call only."""

import functools
from typing import Any

import torch
from torch import nn

from vitfold.errors import FoldError


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


class Heir(StandIn):
    """A stand-in for a forward that calls `super()`, which asks for an instance of the class.

    A class of its own, because `torch.compile` does not follow a `__class__` that is computed.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__.get("_module"))


def run(module: nn.Module, method: str, parts: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """`module.method(*args, **kwargs)` as its class defines it, with `parts` replaced."""
    function = getattr(type(module), method)
    if not parts:
        return function(module, *args, **kwargs)
    stand_in = Heir if _calls_super(function) else StandIn
    return function(stand_in(module, **parts), *args, **kwargs)


def call(module: nn.Module, parts: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The module called with `parts` replaced: its forward, and the hooks around that."""
    if not parts:
        return module(*args, **kwargs)
    if not torch.compiler.is_compiling() and "forward" in vars(module):
        raise FoldError(
            f"the forward of a {type(module).__name__} was replaced after folding, by offloading "
            "hooks perhaps: unfold the model first, or keep that module as it is"
        )
    if not hooked(module):
        return run(module, "forward", parts, *args, **kwargs)
    stand_in = StandIn(module, **parts)
    stand_in.__dict__["forward"] = functools.partial(type(module).forward, stand_in)
    return nn.Module._call_impl(stand_in, *args, **kwargs)  # type: ignore[arg-type]


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes in or comes out, forwards or backwards."""
    forwards = module._forward_hooks or module._forward_pre_hooks
    return bool(forwards or module._backward_hooks or module._backward_pre_hooks)


def _calls_super(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and "__class__" in code.co_freevars
