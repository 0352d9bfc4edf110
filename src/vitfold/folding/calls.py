"""One call of a folded model: what takes the place of its trunk's and its blocks' forwards."""

import contextlib
import contextvars
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfold.errors import FoldError, UnsupportedModel
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import by_name
from vitfold.folding.blocks.recompute import checkpointed
from vitfold.folding.explain import explained
from vitfold.folding.families.base import Family
from vitfold.folding.families.common import with_prefix
from vitfold.folding.inputs import Inputs, call, check, lacks_text
from vitfold.folding.run import Form, Run
from vitfold.methods import Base
from vitfold.methods.base import has_fixed
from vitfold.methods.learned import Learned
from vitfold.tokens.modes import recording

MARK = "_vitfold"
"""The attribute of a trunk that holds its fold."""

Out = Literal["restored", "reduced"]
"""What a tower hands to the model around it: a token for every patch, or those that are left."""

OUTS: tuple[Out, ...] = ("restored", "reduced")

_watched: contextvars.ContextVar[list[Run] | None] = contextvars.ContextVar("runs", default=None)

_masked: contextvars.ContextVar[bool] = contextvars.ContextVar("masked", default=False)


@dataclass(eq=False)
class Fold:
    """How a trunk is folded.

    family: what describes the trunk.
    schedule: how many tokens each block is to remove.
    learned: what the method learns, where it does; a module of the trunk.
    out: what the model around the trunk reads. Of that model nothing is held here: where shapes are
        counted, a trunk is copied with its fold.
    running: one entry for every call under way.
    """

    family: Family
    method: Base
    schedule: tuple[int, ...]
    learned: Learned | None = None
    out: Out = "restored"
    running: list[None] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fold":
        learned = copy.deepcopy(self.learned, memo)
        family = copy.deepcopy(self.family, memo)
        return Fold(family, self.method, self.schedule, learned, self.out)

    @property
    def form(self) -> Form:
        """How tokens travel in the next call."""
        if not (self.method.ragged or self.method.masks):
            return "alike"
        if self.family.trunk.training or _masked.get():
            return "masked"
        return "packed" if self.method.ragged else "alike"


def folds(model: nn.Module) -> list[Fold]:
    """The folds that lie on the trunks of `model`."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{type(model).__name__} is not a torch.nn.Module: give a model")
    return [module.__dict__[MARK] for module in model.modules() if MARK in module.__dict__]


def fold_of(model: nn.Module) -> Fold:
    """The fold on the trunk of `model`, or an error that says that it is not folded."""
    records = folds(model)
    if not records:
        raise FoldError(f"{type(model).__name__} is not folded: call vitfold.fold on it first")
    if len(records) > 1:
        raise FoldError(f"{type(model).__name__} has {parts(records)}: give one of them")
    return records[0]


def parts(records: list[Fold]) -> str:
    """How many folds there are, and on what, for people to read."""
    kinds = " and ".join(type(record.family.trunk).__name__ for record in records)
    return f"{len(records)} folded parts ({kinds})"


def enter(trunk: nn.Module, method: str, *args: Any, **kwargs: Any) -> Any:
    """A method of a folded trunk: a new run of its folded blocks."""
    record: Fold | None = trunk.__dict__.get(MARK)
    if record is None:
        raise FoldError(
            f"a shallow copy of a {type(trunk).__name__} that is not folded any more: make copies "
            "by copy.deepcopy"
        )
    if torch.compiler.is_compiling():
        run = start(record, args, kwargs)
        return record.family.call(method, run, args, kwargs)
    record.running.append(None)
    try:
        with explained(record.family, (*args, *kwargs.values())), _at_hand(record.learned):
            run = start(record, args, kwargs)
            return record.family.call(method, run, args, kwargs)
    finally:
        record.running.pop()


@contextlib.contextmanager
def _brought(learned: nn.Module, hook: Any) -> Iterator[None]:
    hook.pre_forward(learned)
    try:
        yield
    finally:
        hook.post_forward(learned, None)


def _at_hand(learned: nn.Module | None) -> contextlib.AbstractContextManager[None]:
    """Within it what a method learned is where it is used: accelerate may keep it elsewhere, and
    bring it when a module is called, as this one never is."""
    hook = None if learned is None else vars(learned).get("_hf_hook")
    return NOTHING if learned is None or hook is None else _brought(learned, hook)


NOTHING = contextlib.nullcontext()


def pass_block(
    block: nn.Module, index: int, kind: BlockKind, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """The forward of a block of a folded trunk: folded in a run of the trunk, its own elsewhere."""
    run: Run | None = kwargs.pop("vitfold", None)
    if run is None:
        if not torch.compiler.is_compiling():
            warnings.warn(_outside(block), stacklevel=2)
        return type(block).forward(block, x, *args, **kwargs)
    arguments = by_name(kind.arguments, args, kwargs)

    def forward(tokens: Tensor) -> Any:
        return kind.handed(run.block(index, block, kind, kind.turned(tokens), arguments))

    return checkpointed(block, forward, x)


def _outside(block: nn.Module) -> str:
    name = type(block).__name__
    return f"a {name} of a folded model is called outside of its forward: it runs dense, not folded"


def start(fold: Fold, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """A new run for a call with these arguments."""
    _check_graph(fold)
    family = fold.family
    arguments = by_name(family.arguments, args, kwargs)
    run = Run(
        fold.method,
        fold.schedule,
        family.layout_of(family.grid(arguments)),
        family.blocks,
        fold.learned,
        fold.form,
        soft=family.trunk.training,
    )
    run.lengths = family.lengths(arguments)
    run.pixels = family.pixels(arguments) if fold.method.looks else None
    run.valid = _valid(family.padding(arguments), family.prefix)
    run.order = family.order(arguments) if family.square > 1 else None
    if not torch.compiler.is_compiling() and (runs := _watched.get()) is not None:
        run.arguments = arguments
        runs.append(run)
    return run


def _check_graph(fold: Fold) -> None:
    """Refuse to be recorded into a graph that cannot hold what happens."""
    if torch.onnx.is_in_onnx_export() and torch._C._get_tracing_state():
        raise FoldError(
            "the older ONNX exporter loses what becomes of tokens: torch.onnx.export(dynamo=True)"
        )
    if fold.form != "packed":
        return
    if recording():
        raise FoldError(_of_one_shape(fold))
    if torch.compiler.is_compiling():
        _refuse_one_graph(_of_one_shape(fold))


def _of_one_shape(fold: Fold) -> str:
    remedy = "fold with EViT or another method of fixed numbers first"
    if has_fixed(fold.method):
        remedy = "give the model to vitfold.freeze(model, images), or run vitfold freeze, first"
    return (
        f"{type(fold.method).__name__} keeps another number of tokens for every image, and a graph "
        f"has one shape: {remedy}"
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # runs while tracing
def _refuse_one_graph(why: str) -> None:
    """Refuse `torch.compile(fullgraph=True)`, which would say it in thousands of characters."""
    from torch._dynamo.exc import UserError, UserErrorType
    from torch._dynamo.symbolic_convert import InstructionTranslator

    if getattr(InstructionTranslator.current_tx(), "one_graph", False):
        raise UserError(UserErrorType.DYNAMIC_CONTROL_FLOW, why)


def _valid(padding: Tensor | None, prefix: int) -> Tensor | None:
    """`[B, tokens]` False for padding; None where nothing is padded, or where tensors are shapes
    alone."""
    if padding is None or padding.is_meta:
        return None
    if not torch.compiler.is_compiling() and bool(padding.all()):
        return None
    return with_prefix(padding, prefix)


@contextlib.contextmanager
def masked(on: bool = True) -> Iterator[None]:
    """Within it, and in this thread, methods that keep another number of tokens for every image
    only mask those that would leave, as they do in training; or really remove them."""
    token = _masked.set(on)
    try:
        yield
    finally:
        _masked.reset(token)


def follow(model: nn.Module, inputs: Inputs) -> Run:
    """The run of a folded model on these inputs; of its trunk alone, where the model reads text too
    and they have none."""
    trunk = fold_of(model).family.trunk
    check(inputs)
    with watch() as runs, torch.no_grad():
        call(trunk if lacks_text(model, inputs) else model, inputs)
    if not runs:
        raise FoldError(
            f"{type(model).__name__} did not run its {type(trunk).__name__} as it is: give it "
            "images, and look at it before torch.compile"
        )
    return runs[-1]


def trunk_inputs(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments with which a folded model calls its trunk on these inputs, by name: what is
    around the trunk may prepare images first."""
    arguments = follow(model, inputs).arguments
    return {name: arguments[name] for name in fold_of(model).family.arguments if name in arguments}


@contextlib.contextmanager
def watch() -> Iterator[list[Run]]:
    """Collects the runs of all folded calls in this context, and in this thread; who watches from
    outside sees them too."""
    runs: list[Run] = []
    outside = _watched.get()
    token = _watched.set(runs)
    try:
        yield runs
    finally:
        _watched.reset(token)
        if outside is not None:
            outside.extend(runs)
