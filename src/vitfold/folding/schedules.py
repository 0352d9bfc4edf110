"""How many tokens every block of a fold removes: resolved, checked, refused where none leave."""

import warnings

from vitfold.errors import MethodError
from vitfold.folding.calls import Fold
from vitfold.folding.fit import Spread, fit_schedule
from vitfold.folding.flops import Schedule, cost, cost_by_number
from vitfold.methods import Base, Method
from vitfold.methods.base import learns, planned
from vitfold.methods.schedule import per_block
from vitfold.methods.step import Step
from vitfold.tokens.layout import Layout


def resolved(record: Fold) -> Schedule:
    """The schedule that a method asks for on its model."""
    method, family, first = record.method, record.family, _first(record)
    layout = family.layout()
    _check(method, layout)
    if not isinstance(method, Method):
        return (0,) * family.depth
    if method.r is not None:
        numbers, possible = _numbers(method, layout, first)
        if numbers != possible:
            warnings.warn(
                f"r={method.r}: the ramp goes up to {max(numbers)}; of {layout.patches} patch "
                f"tokens at most {max(possible)} can leave a block, and no more do",
                stacklevel=4,
            )
        return possible
    share = 1.0 if method.flops is None else method.flops
    return solved(record, share, first, method.spread)


def solved(record: Fold, share: float, first: int, spread: Spread) -> Schedule:
    """The schedule, spread so from block `first` on, that costs this share of the dense FLOPs."""
    layout = record.family.layout()
    return fit_schedule(share, lambda schedule: _cost(record, schedule), layout, first, spread)


def share_of(record: Fold, schedule: Schedule) -> float:
    """The share of the dense FLOPs that a schedule costs."""
    return _cost(record, schedule) / _cost(record, (0,) * record.family.depth)


def fitting(record: Fold, schedule: Schedule) -> Schedule:
    """A schedule that was resolved before, refused unless the method gives it on this model."""
    method, first, layout = record.method, _first(record), record.family.layout()
    _check(method, layout)
    depth, patches = layout.depth, layout.patches
    if len(schedule) != depth:
        raise MethodError(f"the schedule has {len(schedule)} numbers, the model {depth} blocks")
    for block, r in enumerate(schedule):
        if not 0 <= r <= patches:
            raise MethodError(f"schedule[{block}]={r}: expected 0 to {patches}, the patch tokens")
    if isinstance(method, Method) and method.r is not None:
        numbers, possible = _numbers(method, layout, first)
        if schedule not in (numbers, possible):
            raise MethodError(f"schedule={list(schedule)}: {method} gives {list(possible)}")
    return schedule


def refuse_idle(record: Fold) -> None:
    """Refuse a request above zero that removes nothing."""
    method, layout = record.method, record.family.layout()
    if not isinstance(method, Method) or method.r is None:
        return
    numbers = per_block(method.r, layout.depth, 0)
    blocks = [str(block) for block, number in enumerate(numbers) if number > 0]
    plan = planned(record.learned or method, layout, record.schedule) if blocks else ()
    if blocks and not any(step is not None for step in plan):
        raise MethodError(
            f"{method} removes nothing: its numbers above zero lie in blocks {', '.join(blocks)}, "
            f"and it reduces from block {_first(record)} of {layout.depth} on, while there are "
            "patches"
        )


def refuse_restoring(record: Fold) -> None:
    """Refuse steps whose tokens are all there again after their block, where what is around the
    trunk reads those that are left; and such as cannot go by squares, where those leave."""
    if record.out != "reduced" and record.family.square == 1:
        return
    plan = planned(record.learned or record.method, record.family.layout(), record.schedule)
    if any(
        step is not None and (step.aside or type(step).leave is not Step.leave) for step in plan
    ):
        raise MethodError(
            f"{type(record.method).__name__} has tokens there again after a block, so that nobody "
            "can say which are left behind the tower: use ToMe, or fold with out='restored'"
        )


def _check(method: Base, layout: Layout) -> None:
    """Refuse a model that a method cannot reduce."""
    method.check(layout)
    for part in (part for block in layout.within for part in block):
        method.check(part.layout)
    if layout.within and not method.restores:
        raise MethodError(
            f"{type(method).__name__} {_why(method)}, and attention in windows needs the whole "
            "grid again after every block: use ToMeAround, or ToMe"
        )


def _why(method: Base) -> str:
    """Why tokens are not all there again after a block that a method reduced."""
    if method.ragged:
        return "keeps another number of tokens for every image"
    if learns(type(method)):
        return "learns what becomes of the tokens of a whole image"
    return "may drop tokens, which then show nowhere"


def _numbers(method: Method, layout: Layout, first: int) -> tuple[Schedule, Schedule]:
    """`r` for every block: what the method states, and of that what can leave a block."""
    assert method.r is not None  # else they follow from a share
    most = method.most(layout.patches)
    rates = (
        [method.r]
        if isinstance(method.r, int)
        else method.r[:1]
        if isinstance(method.r, tuple)
        else method.r
    )
    if rates and max(rates) > most:
        raise MethodError(
            f"r={max(rates)}: of {layout.patches} patch tokens at most {most} can leave a block: "
            "give fewer"
        )
    numbers = per_block(method.r, layout.depth, first)
    return numbers, tuple(min(r, most) for r in numbers)


def _first(record: Fold) -> int:
    first, depth = record.method.first(record.family.depth), record.family.depth
    if first > depth:
        raise MethodError(f"skip={first} is more than the {depth} blocks of the model")
    return first


def _cost(record: Fold, schedule: tuple[int, ...]) -> int:
    record.schedule = schedule
    return cost(record.family) if record.method.ragged else cost_by_number(record.family)
