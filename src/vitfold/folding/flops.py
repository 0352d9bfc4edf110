"""Counting floating point operations, and finding the schedule that costs a share of them."""

import copy
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from vitfold.errors import MethodError
from vitfold.folding.families.base import Family
from vitfold.folding.inputs import VALUES
from vitfold.tokens.layout import Layout
from vitfold.tokens.modes import evaluating

CLOSE = 0.002
"""How near to the share that is asked for the search stops."""

NEAR = 0.01
"""How far from it a schedule may be and still be given."""

TRIES = 12

FEW = 2**36
"""So many operations are done sooner than they are worked out from shapes."""

T = TypeVar("T", bound=Hashable)

Schedule = tuple[int, ...]

Spread = Callable[[float, int, int], Schedule]
"""From how many tokens leave a block on average, the depth and the first block that reduces."""


def count(call: Callable[[], Any]) -> int:
    """The floating point operations (two per multiply-add) of a call."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whose operations are not counted
    try:
        with torch.no_grad(), counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def check_counted(model: nn.Module) -> None:
    """Refuse layers whose operations are not counted."""
    for module in model.modules():
        if ".quantized." in type(module).__module__:
            raise MethodError(
                f"a quantized {type(module).__name__} is not counted: fold with flops=share before "
                "the model is quantized, or give r"
            )


class _NoModules(ModuleTracker):
    """Does not tell the counter which module runs: no one asks, and it would fail on views of
    weights, which say without gradients too that they need one."""

    def __enter__(self) -> "_NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def dry_count(model: nn.Module, inputs: Mapping[str, Tensor | None]) -> int:
    """The same of a call from shapes alone: nothing is computed, unless the model looks at its
    inputs. A twin does it, because what is computed on the way may be kept for later calls."""
    blank = {name: _blank(name, value) for name, value in inputs.items()}
    try:
        twin = _without_values(model)
        return count(lambda: twin(**blank))
    # There are no values to look at, or a part cannot be copied: whatever they raise.
    except Exception:
        return count(lambda: model(**inputs))


def _blank(name: str, value: Tensor | None) -> Tensor | None:
    if value is None:
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
    trunk, given = family.trunk, inputs or family.example()
    check_counted(trunk)
    weights = list(trunk.parameters())
    about = 2 * sum(weight.numel() for weight in weights) * family.layout().tokens
    quick = about < FEW and weights[0].dtype == torch.float32 and not weights[0].is_meta
    with evaluating(trunk):
        return count(lambda: trunk(**given)) if quick else dry_count(trunk, given)


class Tried(Generic[T]):
    """What was tried to reach a share of the FLOPs, and the share that each of it costs."""

    def __init__(self, share: float, cost: Callable[[T], float]) -> None:
        self.share, self._cost = share, cost
        self.costs: dict[T, float] = {}

    def off(self, candidate: T) -> float:
        """By how much one is too dear; worked out once."""
        if candidate not in self.costs:
            self.costs[candidate] = self._cost(candidate)
        return self.costs[candidate] - self.share

    @property
    def best(self) -> T:
        """What came nearest."""
        return min(self.costs, key=lambda candidate: abs(self.off(candidate)))

    @property
    def reached(self) -> float:
        """The share that it costs."""
        return self.costs[self.best]

    @property
    def miss(self) -> float:
        """How far that is from the share."""
        return abs(self.reached - self.share)


def solve(
    share: float, cost: Callable[[Schedule], int], layout: Layout, first: int, spread: Spread
) -> Schedule:
    """The schedule that removes tokens as `spread` has it, and costs `share` of what none costs.

    Where that is too coarse, because windows merge several tokens at once, later and later blocks
    remove more, to make up for what is left.
    """
    schedule: Schedule = (0,) * layout.depth
    whole = cost(schedule)
    tried = Tried[Schedule](share, lambda schedule: cost(schedule) / whole)
    tried.costs[schedule] = 1.0
    for start in sorted({first, first + 1, first + 2, layout.depth // 2, layout.depth - 2}):
        if first <= start < layout.depth and tried.miss > NEAR / 2:
            schedule = _add(tried, schedule, layout, start, spread)
    if tried.miss > NEAR:
        raise MethodError(
            f"flops={share} cannot be reached by removing patch tokens from block {first} on: the "
            f"nearest share that can is {tried.reached:.3f}"
        )
    return tried.best


def _add(
    tried: Tried[Schedule], base: Schedule, layout: Layout, start: int, spread: Spread
) -> Schedule:
    """`base` with as much more removed from block `start` on as leaves it above the share.

    The share falls as the rate grows, nearly along a line: from a first guess along the line from
    `base` until there is a bracket, then by false position in it.
    """

    def more(rate: float) -> Schedule:
        extra = spread(rate, layout.depth, start)
        return tuple(a + b for a, b in zip(base, extra, strict=True))

    above, most = tried.off(base), layout.patches / 2
    # What reaches the share if every block costs what its tokens do.
    rate = min(above * 2 * layout.depth * layout.patches / (layout.depth - start) ** 2, most)
    low, high = (0.0, above), (math.inf, 0.0)
    for attempt in range(TRIES):
        point = (rate, tried.off(more(rate)))
        low, high = (point, high) if point[1] > 0 else (low, point)
        if tried.miss <= CLOSE or low[0] == most:
            break
        if high[0] < math.inf:
            rate = _between(low, high, halve=attempt % 4 == 3)
        else:
            saved = above - low[1]
            rate = min(rate * above / saved, most) if saved > 0 else most
    return more(low[0])


def _between(low: tuple[float, float], high: tuple[float, float], halve: bool) -> float:
    """The rate at which a line through both would be at the share."""
    span = low[1] - high[1]
    weight = 0.5 if halve or span <= 0 else low[1] / span
    return low[0] + (high[0] - low[0]) * min(max(weight, 0.02), 0.98)
