"""Counting floating point operations: of a call, and of a trunk from shapes alone."""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from vitfold.errors import MethodError
from vitfold.folding.families.base import Family
from vitfold.folding.inputs import MASKS, VALUES
from vitfold.tokens import kernels
from vitfold.tokens.modes import evaluating

FEW = 2**36
"""So many operations are done sooner than they are worked out from shapes."""

Schedule = tuple[int, ...]
"""How many tokens every block is to remove."""


def count(call: Callable[[], Any]) -> int:
    """The floating point operations (two per multiply-add) of a call."""
    with _counting() as counter:
        call()
    return int(counter.get_total_flops())


def count_by(place: Callable[[], int], call: Callable[[], Any]) -> Counter[int]:
    """The floating point operations of a call, by the place that it is at when they are done."""
    with _counting() as counter:
        places = _Places(counter, place)
        with places:
            call()
    return places.totals


def count_by_number(place: Callable[[], int], call: Callable[[], Any]) -> Counter[int] | None:
    """The same of a call whose shapes follow from numbers that are known before an image is seen:
    several times as fast, since next to nothing is computed. None where that cannot be done."""
    if torch.is_inference_mode_enabled():  # operations would not be taken apart
        return None
    counter = _Uncomputed(place)
    try:
        with torch.no_grad(), _slow_path(), counter:
            call()
    except Exception:  # a part looks at values, of which there are none: whatever it raises
        return None
    return counter.totals


@contextlib.contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Within it operations are counted, and nothing else is different."""
    counter = FlopCounterMode(display=False, custom_mapping=kernels.flop_formulas())
    counter.mod_tracker = _NoModules()
    with torch.no_grad(), _slow_path(), counter:
        yield counter


@contextlib.contextmanager
def _slow_path() -> Iterator[None]:
    """Within it torch's own encoder layers do not take a path whose operations are not counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Places(TorchDispatchMode):
    """Notes at every operation by how much the count has grown, and at which place."""

    def __init__(self, counter: FlopCounterMode, place: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter, self.place = counter, place
        self.totals: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **kwargs or {})
        if grown := self.counter.get_total_flops() - before:
            self.totals[self.place()] += int(grown)
        return result


def check_counted(model: nn.Module) -> None:
    """Refuse layers whose operations are not counted."""
    for module in model.modules():
        if ".quantized." in type(module).__module__ or _is_uncounted(module):
            raise MethodError(
                f"a quantized {type(module).__name__} is not counted: fold with flops=share before "
                "the model is quantized, or give r"
            )


def _is_uncounted(module: nn.Module) -> bool:
    """Whether a linear layer of torchao's multiplies by something that is not counted."""
    weight = module.weight if isinstance(module, nn.Linear) else None
    if weight is None or not type(weight.data).__module__.startswith("torchao."):
        return False
    row = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return count(lambda: nn.functional.linear(row, weight)) < 2 * weight.numel()


class _Uncomputed(TorchDispatchMode):
    """Counts the products of matrices by torch's own formulas, and computes none of the large
    ones."""

    PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)

    def __init__(self, place: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.totals = place, Counter[int]()
        self.formulas = {**flop_registry, **kernels.flop_formulas()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        if func._overloadpacket in self.PRODUCTS:
            rows, columns = args[-2:]
            result = rows.new_zeros((*rows.shape[:-1], columns.shape[-1]))
        else:
            result = func(*args, **kwargs)
        self.totals[self.place()] += int(formula(*args, **kwargs, out_val=result))
        return result


class _NoModules(ModuleTracker):
    """Does not tell the counter which module runs: no one asks, and it would fail on views of
    weights, which say without gradients too that they need one."""

    def __enter__(self) -> "_NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def dry_count(model: nn.Module, inputs: Mapping[str, Tensor | None]) -> int:
    """The floating point operations of a call, from shapes alone: nothing is computed, unless the
    model looks at its inputs. A copy runs, because what is computed on the way may be kept for
    later calls."""
    blank = {name: _blank(name, value) for name, value in inputs.items()}
    try:
        twin = _without_values(model)
        return count(lambda: twin(**blank))
    # There are no values to look at, or a part cannot be copied: whatever they raise.
    except Exception:
        return count(lambda: model(**inputs))


def _blank(name: str, value: Tensor | None) -> Tensor | None:
    if value is None or name in MASKS:
        return None
    return value.cpu() if name in VALUES else value.to("meta")


def _without_values(model: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes alone, and that nobody looks at."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(weight.to("meta"), requires_grad=weight.requires_grad)
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


def cost(family: Family, **inputs: Tensor) -> int:
    """The floating point operations of a call of a trunk in evaluation, on these inputs or on such
    as it is made for: done where they are few, from shapes alone where they are many."""
    trunk, arguments = family.trunk, inputs or family.example()
    check_counted(trunk)
    with evaluating(trunk):
        if _is_quick(family):
            return count(lambda: trunk(**arguments))
        return dry_count(trunk, arguments)


def cost_by_number(family: Family) -> int:
    """The same where it follows from numbers that are known before an image is seen."""
    trunk, arguments = family.trunk, family.example()
    if not _is_quick(family) or any(weight.is_inference() for weight in trunk.parameters()):
        return cost(family)
    check_counted(trunk)
    with evaluating(trunk):
        totals = count_by_number(lambda: 0, lambda: trunk(**arguments))
    return cost(family) if totals is None else totals[0]


def _is_quick(family: Family) -> bool:
    """Whether a call is done sooner than it is worked out from shapes."""
    weights = list(family.trunk.parameters())
    about = 2 * sum(weight.numel() for weight in weights) * family.layout().tokens
    return about < FEW and weights[0].dtype == torch.float32 and not weights[0].is_meta
