"""What every block of a folded model costs."""

from torch import nn

from vitfold.folding.calls import fold_of, watch
from vitfold.folding.flops import check_counted, count_by, count_by_number
from vitfold.folding.inputs import Inputs, call
from vitfold.tokens.modes import evaluating
from vitfold.tools.measure import check_inputs


def flops_by_block(model: nn.Module, images: Inputs) -> list[int]:
    """The floating point operations of every block in one call, the method's own work included;
    what is before the first block and behind the last is left out."""
    check_inputs(model, images)
    check_counted(model)
    record, totals = fold_of(model), None
    with watch() as runs, evaluating(model):

        def place() -> int:
            """The block that runs: a block adds a state when it is done."""
            return len(runs[-1].states) - 1 if runs else -1

        if not record.method.ragged:
            totals = count_by_number(place, lambda: call(model, images))
        if totals is None:
            totals = count_by(place, lambda: call(model, images))
    return [totals[block] for block in range(record.family.depth)]
