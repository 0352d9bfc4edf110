"""Put a method on a model, and take it off again without a trace."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from vitfold.errors import FoldError, MethodError, UnsupportedModel
from vitfold.folding.calls import MARK, Fold, enter, folds, pass_block
from vitfold.folding.families import Found, find
from vitfold.folding.fit import fit_schedule
from vitfold.folding.flops import Schedule, cost
from vitfold.folding.pretrained import save_as_before, warn_of_saving
from vitfold.methods import Base, Method, create_method
from vitfold.methods.learned import Learned
from vitfold.methods.schedule import per_block
from vitfold.tokens.layout import Layout

ModelT = TypeVar("ModelT", bound=nn.Module)

LEARNED = "vitfold"
"""The name, in a trunk and in its state dict, of what its method learns."""


def _entry(trunk: nn.Module, method: str) -> Callable[..., Any]:
    """What lies on a trunk over its class's method. A partial of a plain function is what
    deepcopy, pickle and torch.export all know how to treat."""
    entry = functools.partial(enter, trunk, method)
    own = getattr(type(trunk), method).__get__(trunk)
    entry.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return entry


def fold(model: ModelT, method: Base | str, /, **options: Any) -> ModelT:
    """Fold `model` in place and return it: `fold(model, ToMe(r=13))`, `fold(model, "lgtm", r=16)`.

    A model that is folded already holds the new method alone.
    """
    return _replace(model, _method(method, options), _schedule)


def fold_with(model: ModelT, method: Base, schedule: tuple[int, ...]) -> ModelT:
    """Fold with a schedule that was resolved before; nothing is solved again."""
    return _replace(model, method, lambda record: _fitting(record, schedule))


def _replace(model: ModelT, method: Base, resolve: Callable[[Fold], tuple[int, ...]]) -> ModelT:
    """Fold with the schedule that is resolved for the new fold; when it fails, all is as before."""
    found = find(model)
    before: Fold | None = getattr(found.trunk, MARK, None)
    _refuse_running(before)
    _refuse_patched(found)
    new = Fold(found, method, (0,) * found.depth, _learned(found, method))
    unfold(model)
    try:
        _put_on(new)
        new.schedule = resolve(new)
    except BaseException:
        unfold(model)
        if before is not None:
            _put_on(before)
            warn_of_saving(model)
        raise
    warn_of_saving(model)
    return model


def unfold(model: ModelT) -> ModelT:
    """Take the fold off, in place; the model is exactly what it was. Returns it."""
    for record in folds(model):
        _refuse_running(record)
        _refuse_copied(record, model)
        _refuse_changed(record)
        found = record.found
        for module, entry in _entries(found):
            del module.__dict__[entry]
        del found.trunk.__dict__[MARK]
        if record.learned is not None:
            del found.trunk._modules[LEARNED]
    save_as_before(model)
    return model


def _entries(found: Found) -> list[tuple[nn.Module, str]]:
    """What lies over methods of their classes while a trunk is folded."""
    trunk = [(found.trunk, entry) for entry in found.kind.entries]
    return trunk + [(block, "forward") for block in found.blocks]


def _is_ours(module: nn.Module, entry: str) -> bool:
    return getattr(module.__dict__.get(entry), "func", None) in (enter, pass_block)


def _refuse_copied(record: Fold, model: nn.Module) -> None:
    """Refuse a copy that has its blocks in common with the model that was folded."""
    if not any(module is record.found.trunk for module in model.modules()):
        raise FoldError(
            f"a shallow copy of a folded {type(record.found.trunk).__name__}: unfold that, or make "
            "a copy by copy.deepcopy"
        )


def _refuse_changed(record: Fold) -> None:
    """Refuse to take off what somebody has put something over, or taken away."""
    for module, entry in _entries(record.found):
        if not _is_ours(module, entry):
            raise FoldError(
                f"the {entry} of a {type(module).__name__} was replaced after folding: put back "
                "what was there, then unfold"
            )


def clone(model: ModelT) -> ModelT:
    """A copy of the modules that shares their weights, without a fold."""
    tensors = [*model.parameters(), *model.buffers()]
    return unfold(copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}))


def _method(method: object, options: dict[str, Any]) -> Base:
    if isinstance(method, str):
        return create_method(method, options)
    if not isinstance(method, Base):
        raise MethodError(f"{method!r} is not a method: give one, such as ToMe(r=13), or its name")
    if options:
        name = type(method).__name__
        raise MethodError(f"options {', '.join(options)} go into {name}(...) itself")
    return method


def _put_on(record: Fold) -> None:
    found = record.found
    for entry in found.kind.entries:
        found.trunk.__dict__[entry] = _entry(found.trunk, entry)
    for index, (block, kind) in enumerate(zip(found.blocks, found.kinds, strict=True)):
        block.__dict__["forward"] = functools.partial(pass_block, block, index, kind)
    found.trunk.__dict__[MARK] = record
    if record.learned is not None:
        found.trunk.add_module(LEARNED, record.learned)


def _learned(found: Found, method: Base) -> Learned | None:
    """What a method learns on a trunk, where its weights are."""
    weight = next(found.trunk.parameters())
    with torch.inference_mode(False):  # it is to be trained later
        learned = method.learn(found.depth, found.width)
        if learned is None:
            return None
        learned.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    if hasattr(found.trunk, LEARNED) and MARK not in found.trunk.__dict__:
        raise FoldError(f"{type(found.trunk).__name__} has a part of its own called {LEARNED!r}")
    return learned.train(found.trunk.training)


def _schedule(record: Fold) -> tuple[int, ...]:
    method, found, first = record.method, record.found, _first(record)
    layout = found.layout()
    method.check(layout)
    if not isinstance(method, Method):
        return (0,) * found.depth
    if method.r is not None:
        asked, able = _numbers(method, layout, first)
        if asked != able:
            warnings.warn(
                f"r={method.r}: the ramp goes up to {max(asked)}; of {layout.patches} patch tokens "
                f"at most {max(able)} can leave a block, and no more do",
                stacklevel=4,
            )
        return able
    share = 1.0 if method.flops is None else method.flops
    return fit_schedule(
        share, lambda schedule: _cost(record, schedule), layout, first, method.spread
    )


def _fitting(record: Fold, schedule: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers that were resolved before, if they are those of the method on such a model."""
    method, first, layout = record.method, _first(record), record.found.layout()
    method.check(layout)
    depth, patches = layout.depth, layout.patches
    if len(schedule) != depth:
        raise MethodError(f"the schedule has {len(schedule)} numbers, the model {depth} blocks")
    for block, r in enumerate(schedule):
        if not 0 <= r <= patches:
            raise MethodError(f"schedule[{block}]={r}: expected 0 to {patches}, the patch tokens")
    if isinstance(method, Method) and method.r is not None:
        asked, able = _numbers(method, layout, first)
        if schedule not in (asked, able):
            raise MethodError(f"schedule={list(schedule)}: {method} gives {list(able)}")
    return schedule


def _numbers(method: Method, layout: Layout, first: int) -> tuple[Schedule, Schedule]:
    """The number of a method for every block: as it is asked for, and as many as can leave."""
    assert method.r is not None  # else they follow from a share
    most = method.most(layout.patches)
    said = (
        [method.r]
        if isinstance(method.r, int)
        else method.r[:1]
        if isinstance(method.r, tuple)
        else method.r
    )
    if said and max(said) > most:
        raise MethodError(
            f"r={max(said)}: of {layout.patches} patch tokens at most {most} can leave a block: "
            "give fewer"
        )
    asked = per_block(method.r, layout.depth, first)
    return asked, tuple(min(r, most) for r in asked)


def _first(record: Fold) -> int:
    first, depth = record.method.first(record.found.depth), record.found.depth
    if first > depth:
        raise MethodError(f"skip={first} is more than the {depth} blocks of the model")
    return first


def _cost(record: Fold, schedule: tuple[int, ...]) -> int:
    record.schedule = schedule
    return cost(record.found)


def _refuse_running(record: Fold | None) -> None:
    if record is not None and record.running:
        raise FoldError("a forward of this model is running: fold and unfold between calls")


def _refuse_patched(found: Found) -> None:
    for module, entry in _entries(found):
        if entry in module.__dict__ and not _is_ours(module, entry):
            raise UnsupportedModel(
                f"the {entry} of a {type(module).__name__} is replaced, by offloading hooks "
                "perhaps: fold before that"
            )
