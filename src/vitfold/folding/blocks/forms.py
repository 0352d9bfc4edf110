"""Which attention runs in a block: by the form of its tokens and by what its step needs."""

from collections.abc import Mapping
from typing import Any

from vitfold.errors import MethodError
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.masked import MaskedAttend, ScoredMaskedAttend
from vitfold.folding.blocks.own import FirstAttend, ScoredAttend, TorchAttend
from vitfold.folding.blocks.packed import PackedAttend, ScoredPackedAttend
from vitfold.methods.step import Received, Step
from vitfold.tokens.state import TokenState

FORMS: dict[tuple[str, Received | None], type[Attend]] = {
    ("dense", None): Attend,
    ("dense", "all"): ScoredAttend,
    ("dense", "first"): FirstAttend,
    ("packed", None): PackedAttend,
    ("packed", "all"): ScoredPackedAttend,
    ("masked", None): MaskedAttend,
    ("masked", "all"): ScoredMaskedAttend,
}
"""By the form of the tokens, and whose attention is wanted."""


def attention_of(
    state: TokenState, arguments: Mapping[str, Any], proportional: bool, step: Step | None
) -> Attend:
    """The attention over tokens in such a state that also captures what a step needs."""
    if step is None:
        return FORMS[state.form, None](state, arguments, proportional, None)
    if step.watch is not None and state.form == "dense":
        return TorchAttend(state, arguments, proportional, step.cue, step.watch)
    form = FORMS.get((state.form, step.received))
    if form is None or step.watch is not None:
        raise MethodError(
            "the attention of one query, or of all for somebody who watches, is shown where all "
            "images have as many tokens: give images of one length, in eval mode"
        )
    return form(state, arguments, proportional, step.cue)
