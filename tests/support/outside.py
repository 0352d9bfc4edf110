"""A slow twin for models of any family, and the checks that every family has to pass: over all
its tokens a model computes what merging them gives, by masks that its own attention is handed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitfold
from support.compare import near, same, tensors
from support.models import maps
from vitfold.folding.families import find
from vitfold.tokens.tokenmap import TokenMap

NORMS = ("norm2", "ln_2", "after")
"""What the second half of a block begins with."""


@torch.no_grad()
def read(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All tensors that a call hands out."""
    return tensors(model(x))


def check(model: Any, x: Tensor, method: Any) -> None:
    """Nothing to reduce changes nothing; merging is what the twin computes, in dense shapes; and
    unfolding leaves no trace."""
    keys, attributes, dense = list(model.state_dict()), set(vars(model)), read(model, x)
    vitfold.fold(model, vitfold.ToMe(r=0))
    assert list(model.state_dict()) == keys
    same(read(model, x), dense)
    vitfold.fold(model, method)
    folded, stages = read(model, x), maps(model, x)
    vitfold.unfold(model)
    assert set(vars(model)) == attributes
    assert not any("forward" in vars(module) for module in model.modules())
    same(read(model, x), dense)
    with twin_of(model, stages):
        near(folded, read(model, x))
    assert not torch.allclose(folded[0], dense[0], rtol=1e-3, atol=1e-4), "nothing was merged"


def check_dropped(model: Any, x: Tensor) -> None:
    """Dropping keeps the shapes."""
    dense = read(model, x)
    dropped = read(vitfold.fold(model, vitfold.Drop(r=4)), x)
    assert [t.shape for t in dropped] == [t.shape for t in dense]
    assert all(t.isfinite().all() for t in dropped)


@contextlib.contextmanager
def twin_of(model: nn.Module, stages: list[TokenMap]) -> Iterator[None]:
    """Makes every token the mean of its group in the middle of every block: equal tokens stay
    equal, and n of them weigh n times in attention and in pooling."""
    family, handles = find(model), []
    for block, stage in zip(family.blocks, stages[1:], strict=False):
        norm = next(getattr(block, name) for name in NORMS if hasattr(block, name))
        turned = family.kinds[0].axis == 0
        handles.append(norm.register_forward_pre_hook(_averaging(stage, turned)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _averaging(stage: TokenMap, turned: bool) -> Any:
    groups = F.one_hot(stage.slot, stage.slots)

    def average(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].transpose(0, 1) if turned else args[0]
        own = groups.to(x.dtype)
        mean = (own.mT @ x) / own.sum(1).unsqueeze(-1)
        x.data.copy_(own @ mean)  # the residual stream has it too

    return average
