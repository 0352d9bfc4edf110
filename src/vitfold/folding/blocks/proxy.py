"""Running a module's own forward with some of its parts overridden, for one call only."""

import functools
import types
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from vitfold.errors import FoldError
from vitfold.tokens.modes import compiling


class Proxy:
    """What a module's forward sees as `self`: the module, except for these overrides.

    Nothing on the module changes, so calls may overlap, nest and be recomputed, and whatever the
    forward does without us it does with us.
    """

    def __init__(self, module: nn.Module, **overrides: Any) -> None:
        own = self.__dict__
        if not compiling():
            # A module looks for its parts in Python, each time; other things have none.
            own.update(vars(module).get("_modules", {}))
        own.update(overrides)
        own["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Heir(Proxy):
    """A proxy for a forward that calls `super()`, which asks for an instance of the class.

    A class of its own, because `torch.compile` does not follow a `__class__` that is computed.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__.get("_module"))

    # Hooks that look a module up, by itself or in a table, find the one that this stands for.

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._module

    def __hash__(self) -> int:
        return hash(self._module)


class Whole(Proxy):
    """A proxy whose methods, too, see the overrides; called, it runs its forward and hooks."""

    def __getattr__(self, name: str) -> Any:
        module = self._module
        method = getattr(type(module), name, None)
        if not isinstance(method, types.FunctionType) or replaced(module, name):
            return getattr(module, name)
        if isinstance(getattr(module, name), types.FunctionType):  # static: it takes no self
            return method
        return functools.partial(method, self)  # which torch.compile follows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if hooked(self._module):
            return nn.Module._call_impl(self, *args, **kwargs)  # type: ignore[arg-type]
        return self.forward(*args, **kwargs)


class WholeHeir(Whole, Heir):
    """A `Whole` for methods that call `super()`."""


def whole(module: nn.Module, **overrides: Any) -> Whole:
    """A proxy of a module for all its methods."""
    methods = (m for name, m in vars(type(module)).items() if not name.startswith("__"))
    return (WholeHeir if any(map(_asks_for_class, methods)) else Whole)(module, **overrides)


def replaced(module: nn.Module, name: str) -> bool:
    """Whether a method was replaced on this instance, by somebody else than a fold."""
    own = vars(module).get(name)
    ours = getattr(getattr(own, "func", None), "__module__", "") == "vitfold.folding.calls"
    return own is not None and not ours


def run(
    module: nn.Module, method: str, overrides: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """`module.method(*args, **kwargs)` as its class defines it, with `overrides`."""
    function = overrides.get(method) or getattr(type(module), method)
    if not overrides:
        return function(module, *args, **kwargs)
    proxy = Heir if _calls_super(function) else Proxy
    return function(proxy(module, **overrides), *args, **kwargs)


def call(module: nn.Module, overrides: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The module called with `overrides`: its forward (or what is overridden by that name, a
    function that takes the module first), and the hooks around it."""
    if not overrides:
        return module(*args, **kwargs)
    if not torch.compiler.is_compiling() and "forward" in vars(module):
        return _offloaded(module, overrides, args, kwargs)
    if not hooked(module):
        return run(module, "forward", overrides, *args, **kwargs)
    forward = overrides.get("forward") or type(module).forward
    proxy = Heir(module, **overrides)  # of the class that hooks expect
    proxy.__dict__["forward"] = functools.partial(forward, proxy)
    return nn.Module._call_impl(proxy, *args, **kwargs)  # type: ignore[arg-type]


def _offloaded(
    module: nn.Module, overrides: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`call` with the steps of accelerate's hook around it, which it laid over the forward of a
    folded model."""
    hook: Any = vars(module).get("_hf_hook")
    if hook is None:
        raise FoldError(
            f"the forward of a {type(module).__name__} was replaced after folding: put back what "
            "was there, or unfold the model first"
        )
    args, kwargs = hook.pre_forward(module, *args, **kwargs)
    return hook.post_forward(module, run(module, "forward", overrides, *args, **kwargs))


def hooked(module: nn.Module) -> bool:
    """Whether a hook sees the inputs or outputs of this module, forwards or backwards; global hooks
    count."""
    forwards = module._forward_hooks or module._forward_pre_hooks
    own = forwards or module._backward_hooks or module._backward_pre_hooks
    return bool(own) or (not torch.compiler.is_compiling() and bool(_has_any_global_hook()))


def _asks_for_class(method: Any) -> bool:
    """Whether a method calls `super()`, or is decorated: transformers' decorators look up by the
    class of a model what they record of it."""
    return _calls_super(method) or hasattr(method, "__wrapped__")


def _calls_super(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and "__class__" in code.co_freevars
