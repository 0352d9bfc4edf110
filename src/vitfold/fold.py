"""Put a method on a model, and take it off again without a trace."""

import contextlib
import contextvars
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitfold.blocks.kinds import Kind
from vitfold.blocks.recompute import checkpointed
from vitfold.errors import (
    FoldError,
    MethodError,
    ShapeError,
    UnsupportedModel,
    VitfoldError,
    one_line,
)
from vitfold.families import Found, find
from vitfold.flops import cost, solve
from vitfold.methods import Base, Method, create_method
from vitfold.methods.base import has_fixed
from vitfold.methods.schedule import per_block
from vitfold.methods.steps import Learned
from vitfold.run import Form, Run

ModelT = TypeVar("ModelT", bound=nn.Module)

MARK = "_vitfold"
"""The attribute of a trunk that holds its fold."""

LEARNED = "vitfold"
"""The name, in a trunk and in its state dict, of what its method learns."""

_watched: contextvars.ContextVar[list[Run] | None] = contextvars.ContextVar("runs", default=None)

_masked: contextvars.ContextVar[bool] = contextvars.ContextVar("masked", default=False)


@dataclass(eq=False)
class Fold:
    """What lies on a trunk while it is folded.

    schedule: how many tokens each block is asked to remove.
    learned: what the method learns, where it does; a module of the trunk.
    running: one entry for every call under way.
    """

    found: Found
    method: Base
    schedule: tuple[int, ...]
    learned: Learned | None = None
    running: list[None] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fold":
        learned = copy.deepcopy(self.learned, memo)
        return Fold(copy.deepcopy(self.found, memo), self.method, self.schedule, learned)

    @property
    def form(self) -> Form:
        """How tokens travel in the next call."""
        if not (self.method.ragged or self.method.masks):
            return "alike"
        if self.found.trunk.training or _masked.get():
            return "masked"
        return "packed" if self.method.ragged else "alike"


def enter(trunk: nn.Module, method: str, *args: Any, **kwargs: Any) -> Any:
    """A method of a folded trunk: a new run of its folded blocks."""
    record: Fold = getattr(trunk, MARK)
    run = start(record, args, kwargs)
    if torch.compiler.is_compiling():
        return record.found.kind.call(trunk, method, run, args, kwargs)
    record.running.append(None)
    try:
        with _errors(record, (*args, *kwargs.values())):
            return record.found.kind.call(trunk, method, run, args, kwargs)
    finally:
        record.running.pop()


def pass_block(
    block: nn.Module, index: int, kind: Kind, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """The forward of a block of a folded trunk: folded in a run of the trunk, its own elsewhere."""
    run: Run | None = kwargs.pop("vitfold", None)
    if run is None:
        if not torch.compiler.is_compiling():
            warnings.warn(_outside(block), stacklevel=2)
        return type(block).forward(block, x, *args, **kwargs)
    given = dict(zip(kind.arguments, args, strict=False)) | kwargs
    return checkpointed(block, lambda tokens: run.block(index, block, kind, tokens, given), x)


def _outside(block: nn.Module) -> str:
    name = type(block).__name__
    return f"a {name} of a folded model is called outside of its forward: it runs dense, not folded"


def _entry(trunk: nn.Module, method: str) -> Callable[..., Any]:
    """What lies on a trunk over its class's method. A partial of a plain function is what
    deepcopy, pickle and torch.export all know how to treat."""
    entry = functools.partial(enter, trunk, method)
    own = getattr(type(trunk), method).__get__(trunk)
    entry.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return entry


def start(fold: Fold, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """A new run for a call with these arguments."""
    found = fold.found
    if fold.form == "packed" and _records():
        remedy = "fold with EViT or another method of fixed numbers, then export it"
        if has_fixed(fold.method):
            remedy = "give the model to vitfold.freeze(model, images), then export it"
        raise FoldError(
            f"{type(fold.method).__name__} keeps another number of tokens for every image, and a "
            f"graph has one shape: {remedy}"
        )
    given = dict(zip(found.kind.arguments, args, strict=False)) | kwargs
    run = Run(
        fold.method,
        fold.schedule,
        found.layout_of(found.kind.grid(found.trunk, given)),
        fold.learned,
        fold.form,
        soft=found.trunk.training,
    )
    run.valid = _valid(found.kind.padding(found.trunk, given), found.prefix)
    if not torch.compiler.is_compiling() and (runs := _watched.get()) is not None:
        runs.append(run)
    return run


def _records() -> bool:
    """Whether the call is made into a graph."""
    return torch.compiler.is_exporting() or bool(torch._C._get_tracing_state())


def _valid(padding: Tensor | None, prefix: int) -> Tensor | None:
    """`[B, tokens]`: what is not padding; None where nothing is, as far as one may look."""
    if padding is None or (not torch.compiler.is_compiling() and bool(padding.all())):
        return None
    return torch.cat([padding.new_ones(padding.shape[0], prefix), padding], dim=1)


@contextlib.contextmanager
def masked(on: bool = True) -> Iterator[None]:
    """Within it, and in this thread, methods that keep another number of tokens for every image
    only mask those that would leave, as they do in training; or really remove them."""
    token = _masked.set(on)
    try:
        yield
    finally:
        _masked.reset(token)


@contextlib.contextmanager
def watch() -> Iterator[list[Run]]:
    """Collects the runs of all folded calls in this context, and in this thread."""
    runs: list[Run] = []
    token = _watched.set(runs)
    try:
        yield runs
    finally:
        _watched.reset(token)


@contextlib.contextmanager
def _errors(fold: Fold, given: tuple[Any, ...]) -> Iterator[None]:
    """What the model says of images that it does not take, as an error of ours; and what it says
    when it cannot hand a run on to its blocks."""
    try:
        yield
    except TypeError as error:
        if "'vitfold'" not in str(error):
            raise
        raise FoldError(
            f"{type(fold.found.trunk).__name__} does not run the blocks that were folded, or does "
            "not hand keyword arguments down to them: unfold it before its blocks change"
        ) from error
    except AttributeError as error:
        if not any(isinstance(part, list | tuple) for part in given[:1]):
            raise
        raise ShapeError(
            f"images came as a {type(given[0]).__name__}: stack them into one tensor "
            "[B, C, H, W]; images of different sizes go into calls of their own"
        ) from error
    except (AssertionError, ValueError, RuntimeError) as error:
        first = next((x for x in given if isinstance(x, Tensor)), None)
        if first is not None and first.dim() == 3 and first.shape[0] == fold.found.size[0]:
            raise ShapeError(
                f"an image of {list(first.shape)} came without a batch: give images[None], "
                "[B, C, H, W]"
            ) from error
        images = next((x for x in given if isinstance(x, Tensor) and x.dim() == 4), None)
        if isinstance(error, VitfoldError) or images is None:
            raise
        size = fold.found.size
        other = tuple(images.shape[1:]) != size
        if isinstance(error, RuntimeError) and images.shape[1:2] == size[:1]:
            raise
        shape, wanted = ("x".join(map(str, s)) for s in (images.shape[1:], size))
        takes = f"takes {wanted}: resize them, or create" if other else "does not take them: create"
        raise ShapeError(
            f"images of {shape} do not fit {type(fold.found.trunk).__name__}, which {takes} the "
            f"model for them ({one_line(error)})"
        ) from error


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
        raise
    return model


def unfold(model: ModelT) -> ModelT:
    """Take the fold off, in place; the model is exactly what it was. Returns it."""
    for record in folds(model):
        _refuse_running(record)
        _refuse_changed(record)
        found = record.found
        for module, entry in _entries(found):
            del module.__dict__[entry]
        del found.trunk.__dict__[MARK]
        if record.learned is not None:
            del found.trunk._modules[LEARNED]
    return model


def _entries(found: Found) -> list[tuple[nn.Module, str]]:
    """What lies over methods of their classes while a trunk is folded."""
    trunk = [(found.trunk, entry) for entry in found.kind.entries]
    return trunk + [(block, "forward") for block in found.blocks]


def _is_ours(module: nn.Module, entry: str) -> bool:
    return getattr(module.__dict__.get(entry), "func", None) in (enter, pass_block)


def _refuse_changed(record: Fold) -> None:
    """Refuse to take off what somebody has put something over, or taken away."""
    for module, entry in _entries(record.found):
        if not _is_ours(module, entry):
            raise FoldError(
                f"the {entry} of a {type(module).__name__} was replaced after folding: put back "
                "what was there, then unfold"
            )


def folds(model: nn.Module) -> list[Fold]:
    """What lies on the trunks of `model`."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{type(model).__name__} is not a torch.nn.Module: give a model")
    return [module.__dict__[MARK] for module in model.modules() if MARK in module.__dict__]


def clone(model: ModelT) -> ModelT:
    """A copy of the modules that shares their weights, without a fold."""
    tensors = [*model.parameters(), *model.buffers()]
    return unfold(copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}))


def folded(model: nn.Module) -> Fold:
    """What lies on the trunk of `model`, or an error that says that nothing does."""
    records = folds(model)
    if not records:
        raise FoldError(f"{type(model).__name__} is not folded: call vitfold.fold on it first")
    return records[0]


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
    learned = method.learn(found.depth, found.width)
    if learned is None:
        return None
    if hasattr(found.trunk, LEARNED) and MARK not in found.trunk.__dict__:
        raise FoldError(f"{type(found.trunk).__name__} has a part of its own called {LEARNED!r}")
    weight = next(found.trunk.parameters())
    learned.train(found.trunk.training)
    return learned.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def _schedule(record: Fold) -> tuple[int, ...]:
    method, found, first = record.method, record.found, _first(record)
    layout = found.layout()
    method.check(layout)
    if not isinstance(method, Method):
        return (0,) * found.depth
    if method.r is not None:
        patches = layout.patches
        return per_block(method.r, found.depth, first, patches, method.most(patches))
    share = 1.0 if method.flops is None else method.flops
    return solve(share, lambda schedule: _cost(record, schedule), layout, first, method.spread)


def _fitting(record: Fold, schedule: tuple[int, ...]) -> tuple[int, ...]:
    _first(record)
    layout = record.found.layout()
    record.method.check(layout)
    depth, patches = layout.depth, layout.patches
    if len(schedule) != depth:
        raise MethodError(f"the schedule has {len(schedule)} numbers, the model {depth} blocks")
    for block, r in enumerate(schedule):
        if not 0 <= r <= patches:
            raise MethodError(f"schedule[{block}]={r}: expected 0 to {patches}, the patch tokens")
    return schedule


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
