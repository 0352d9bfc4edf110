"""A model of transformers beside its twin: what folding has to give."""

from typing import Any

import torch
from torch import Tensor

import vitfold
from support.compare import near, same, tensors
from support.models import maps, twin


@torch.no_grad()
def outputs(model: Any, arguments: dict[str, Any], **options: Any) -> list[Tensor]:
    """All tensors that a call hands out."""
    return tensors(model(**arguments, **options))


def beside_twin(
    model: Any, arguments: dict[str, Any], method: Any, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of a folded model, which are those of its twin, and of the dense one, which are
    the same with nothing to reduce and after all."""
    dense = outputs(model, arguments, **options)
    vitfold.fold(model, vitfold.ToMe(r=0))
    same(outputs(model, arguments, **options), dense)
    vitfold.fold(model, method)
    folded = outputs(model, arguments, **options)
    stages = maps(model, **arguments)
    vitfold.unfold(model)
    same(outputs(model, arguments, **options), dense)
    with twin(model, stages):
        near(folded, outputs(model, arguments, **options))
    return folded, dense
