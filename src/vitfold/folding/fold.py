"""Put a method on a model, and take it off again without a trace."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from vitfold.errors import FoldError, MethodError, UnsupportedModel, VitfoldError, one_line
from vitfold.folding import hosts
from vitfold.folding.calls import MARK, OUTS, Fold, Out, enter, fold_of, folds, pass_block
from vitfold.folding.families import Family, find
from vitfold.folding.flops import Schedule
from vitfold.folding.schedules import fitting, refuse_idle, refuse_restoring, resolved
from vitfold.methods import Base, Method, create_method
from vitfold.methods.base import learns
from vitfold.methods.learned import Learned

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


@dataclass(frozen=True)
class Folded:
    """How a model is folded.

    method: the method that lies on it.
    schedule: how many tokens every block is to remove; zeros where the method goes by what
        an image shows.
    out: what a model around the vision transformer reads: a token for every patch, or those that
        are left.
    """

    method: Base
    schedule: Schedule
    out: Out = "restored"

    def __repr__(self) -> str:
        out = "" if self.out == "restored" else f", out={self.out!r}"
        return f"{type(self).__name__}(method={self.method}, schedule={self.schedule}{out})"


def folded(model: nn.Module) -> Folded | None:
    """How `model` is folded; None where it is not."""
    if not folds(model):
        return None
    record = fold_of(model)
    return Folded(record.method, record.schedule, record.out)


def fold(model: ModelT, method: Base | str, /, *, out: Out = "restored", **options: Any) -> ModelT:
    """Fold `model` in place and return it: `fold(model, ToMe(r=13))`, `fold(model, "lgtm", r=16)`.

    A model that is folded already holds the new method alone.

    out: what a vision-language model reads of its tower: `restored`, as many visual tokens as ever;
        `reduced`, those that are left, in prompts that stay as the processor makes them.
    """
    instance = _method(method, options)
    if todo := _to_be_learned(instance):
        warnings.warn(todo, stacklevel=2)
    return _replace(model, instance, resolved, out)


def fold_to_learn(model: ModelT, method: Base) -> ModelT:
    """Fold for a caller that finds or trains what the method learns: no hint that this is
    missing."""
    return _replace(model, method, resolved)


def _to_be_learned(method: Base) -> str | None:
    """What to run before the method does what it is for; None where it does so at once."""
    share, name = getattr(method, "flops", None), type(method).__name__
    if isinstance(method, Method):
        if method.command != "calibrate":
            return None
        what, end = f"{name} compares tokens at random until it has looked at images", ""
    elif share is None:
        return None
    else:
        what = f"flops={share} is what {name} costs once it has learned how"
        end = f" --flops {share}"
    return f"{what}: vitfold {method.command or 'train'} MODEL --method {method.name}{end}"


def fold_with(
    model: ModelT, method: Base, schedule: tuple[int, ...], out: Out = "restored"
) -> ModelT:
    """Fold with a schedule that was resolved before; nothing is solved again."""
    return _replace(model, method, functools.partial(fitting, schedule=schedule), out)


def _replace(
    model: ModelT,
    method: Base,
    resolve: Callable[[Fold], tuple[int, ...]],
    out: Out = "restored",
) -> ModelT:
    """Fold with the schedule that is resolved for the new fold; when it fails, all is as before."""
    family = find(model)
    _prepare(model, family, method, out)
    before: Fold | None = getattr(family.trunk, MARK, None)
    _refuse_running(before)
    _refuse_patched(family)
    _refuse_offloaded(family, method)
    new = Fold(family, method, (0,) * family.depth, _learned(family, method), out)
    if before is not None:
        _take_off(before, model)
    _put_on(new, model)
    try:
        new.schedule = resolve(new)
        refuse_idle(new)
        refuse_restoring(new)
    except BaseException:
        _take_off(new, model)
        if before is not None:
            _put_on(before, model)
        raise
    return model


def _prepare(model: nn.Module, family: Family, method: Base, out: Out) -> None:
    """Tell the family what the model around its trunk joins; refused where that takes no reduced
    tokens, or not by this method."""
    if out not in OUTS:
        raise MethodError(f"out={out!r}: expected 'restored' or 'reduced'")
    if out == "reduced":
        host = hosts.find_host(model, family)
        family.square = max(host.side, family.square)
        hosts.check_method(family, method)
        hosts.refuse_patched(model, host)


def unfold(model: ModelT) -> ModelT:
    """Take the fold off, in place; the model is exactly what it was. Returns it."""
    for record in folds(model):
        _take_off(record, model)
    return model


def _entries(family: Family) -> list[tuple[nn.Module, str]]:
    """The methods of the trunk and its blocks that a fold overrides: module and name."""
    trunk = [(family.trunk, entry) for entry in family.methods]
    return trunk + [(block, "forward") for block in family.blocks]


def _is_ours(module: nn.Module, entry: str) -> bool:
    return getattr(module.__dict__.get(entry), "func", None) in (enter, pass_block)


def _is_own(module: nn.Module, entry: str) -> bool:
    """Whether an attribute is the method of the class, which accelerate leaves there when its hooks
    are taken off."""
    method = module.__dict__.get(entry)
    own = getattr(type(module), entry)
    return getattr(method, "__func__", None) is own and method.__self__ is module  # type: ignore[union-attr]


def _refuse_offloaded(family: Family, method: Base) -> None:
    """Refuse to work with weights that are not there."""
    needs = getattr(method, "flops", None) is not None or learns(type(method))
    if not needs or not any(hasattr(module, "_hf_hook") for module in family.trunk.modules()):
        return
    if any(parameter.is_meta for parameter in family.trunk.parameters()):
        raise UnsupportedModel(
            f"the weights of this {type(family.trunk).__name__} are offloaded by accelerate, and "
            f"{type(method).__name__} needs them: take its hooks off "
            "(accelerate.hooks.remove_hook_from_module(model, recurse=True)), fold, then offload "
            "the model again"
        )


def _refuse_copied(record: Fold, model: nn.Module) -> None:
    """Refuse a copy that has its blocks in common with the model that was folded."""
    if not any(module is record.family.trunk for module in model.modules()):
        raise FoldError(
            f"a shallow copy of a folded {type(record.family.trunk).__name__}: unfold that, or "
            "make a copy by copy.deepcopy"
        )


def _refuse_changed(record: Fold) -> None:
    """Refuse to take off what somebody has put something over, or taken away."""
    for module, entry in _entries(record.family):
        if not _is_ours(module, entry):
            raise FoldError(
                f"the {entry} of a {type(module).__name__} was replaced after folding: put back "
                "what was there, then unfold"
            )


def clone(model: ModelT) -> ModelT:
    """A copy of the modules that shares their weights, without a fold."""
    tensors = [*model.parameters(), *model.buffers()]
    try:
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except VitfoldError:
        raise
    except Exception as error:  # of a lock, a file or a generator in it: whatever they raise
        raise UnsupportedModel(
            f"a {type(model).__name__} cannot be copied: {one_line(error)}"
        ) from error
    return unfold(copied)


def _method(method: object, options: dict[str, Any]) -> Base:
    if isinstance(method, str):
        return create_method(method, options)
    if not isinstance(method, Base):
        raise MethodError(f"{method!r} is not a method: give one, such as ToMe(r=13), or its name")
    if options:
        name = type(method).__name__
        raise MethodError(f"options {', '.join(options)} go into {name}(...) itself")
    return method


SHOWN = ("extra_repr", "__prepare_scriptable__")
"""What lies on a trunk besides, so that a fold is seen where it is printed and scripted."""


SAVE = "save_pretrained"
"""What transformers' models save themselves by: dense, whatever lies on them."""


def _save_dense(module: Any, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained`, which says what it leaves out."""
    if folds(module):
        warnings.warn(
            f"{SAVE} keeps nothing of how a {type(module).__name__} is folded, and what is loaded "
            "again is dense: vitfold.save(model, directory, backbone=True) keeps it",
            stacklevel=2,
        )
    return type(module).save_pretrained(module, *args, **kwargs)


def _line(trunk: nn.Module) -> str:
    """What printing a trunk shows: also how it is folded."""
    own = type(trunk).extra_repr(trunk)
    return "\n".join(part for part in (own, f"(vitfold): {folded(trunk)}") if part)


def _refuse_script(name: str) -> None:
    raise FoldError(
        f"torch.jit.script cannot compile a folded {name}: use torch.jit.trace, torch.compile or "
        "torch.export, or unfold it first"
    )


def _put_on(record: Fold, model: nn.Module) -> None:
    family = record.family
    for entry in family.methods:
        family.trunk.__dict__[entry] = _entry(family.trunk, entry)
    for index, (block, kind) in enumerate(zip(family.blocks, family.kinds, strict=True)):
        block.__dict__["forward"] = functools.partial(pass_block, block, index, kind)
    family.trunk.__dict__[MARK] = record
    name = type(family.trunk).__name__
    overlays = (functools.partial(_line, family.trunk), functools.partial(_refuse_script, name))
    family.trunk.__dict__.update(zip(SHOWN, overlays, strict=True))
    for module in model.modules():
        if hasattr(type(module), SAVE) and SAVE not in vars(module):
            module.__dict__[SAVE] = functools.partial(_save_dense, module)
    if record.learned is not None:
        family.trunk.add_module(LEARNED, record.learned)
    if record.out == "reduced":
        hosts.put_on(model, hosts.find_host(model, family))


def _take_off(record: Fold, model: nn.Module) -> None:
    _refuse_running(record)
    _refuse_copied(record, model)
    _refuse_changed(record)
    hosts.refuse_replaced(model)
    family = record.family
    for module, entry in _entries(family):
        del module.__dict__[entry]
    for name in (MARK, *SHOWN):
        del family.trunk.__dict__[name]
    for module in model.modules():
        if getattr(vars(module).get(SAVE), "func", None) is _save_dense:
            del module.__dict__[SAVE]
    if record.learned is not None:
        del family.trunk._modules[LEARNED]
    hosts.take_off(model)


def _learned(family: Family, method: Base) -> Learned | None:
    """The module that a method learns on a trunk, on the device of its weights."""
    weight = next(family.trunk.parameters())
    with torch.inference_mode(False):  # it is to be trained later
        learned = method.learn(family.depth, family.width)
        if learned is None:
            return None
        learned.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    if hasattr(family.trunk, LEARNED) and MARK not in family.trunk.__dict__:
        raise FoldError(f"{type(family.trunk).__name__} has a part of its own called {LEARNED!r}")
    return learned.train(family.trunk.training)


def _refuse_running(record: Fold | None) -> None:
    if record is not None and record.running:
        raise FoldError("a forward of this model is running: fold and unfold between calls")


def _refuse_patched(family: Family) -> None:
    """Refuse modules over whose methods somebody else has laid something."""
    attentions = {a for block in family.blocks for a in family.attentions(block)}
    inner = [(attention, "forward") for attention in attentions - set(family.blocks)]
    for module, entry in _entries(family) + inner:
        if entry in module.__dict__ and not (_is_ours(module, entry) or _is_own(module, entry)):
            name = type(module).__name__
            if hasattr(module, "_hf_hook"):
                raise UnsupportedModel(
                    f"a {name} has hooks of accelerate, so that its {entry} is replaced: take "
                    "them off (accelerate.hooks.remove_hook_from_module(model, recurse=True)), "
                    "fold, then dispatch the model again"
                )
            raise UnsupportedModel(
                f"the {entry} of a {name} is replaced: put back what was there, fold, and then "
                "replace it again"
            )
