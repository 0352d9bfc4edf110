"""What the output of a model notices of its tokens, block by block, from images without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold_to_learn
from vitfold.methods.base import Base
from vitfold.methods.fisher import DirectedHeights, Directions, Fisher, FisherCut, rank
from vitfold.methods.step import Plan, Step, View
from vitfold.tokens.layout import Layout
from vitfold.tokens.modes import evaluating
from vitfold.tokens.state import TokenState
from vitfold.tools.looks import Look, look
from vitfold.tools.measure import Progress

ModelT = TypeVar("ModelT", bound=nn.Module)

BATCH = 8

DRAWS = 4
"""In how many directions of what it says of an image the model is looked at."""


def is_directed(method: Base) -> bool:
    """Whether a method compares tokens in directions that images tell."""
    return isinstance(method, Fisher | FisherCut)


def directions(model: nn.Module, images: Tensor, progress: Progress = lambda: None) -> Tensor:
    """`[depth, C, rank]`: for every block, what tokens are projected on to be what the output
    notices of them between attention and MLP.

    model: without a fold.
    progress: called once.
    """
    moments = information(model, images)
    progress()
    return torch.stack([_softened(moment) for moment in moments])


def information(model: nn.Module, images: Tensor) -> Tensor:
    """`[depth, C, C]`: the Fisher information, block by block: the mean square of the gradients at
    patches, over what may be said of an image. Every image counts alike, however sure the model is
    of it."""
    trunk = find(model)
    moments = torch.zeros(trunk.depth, trunk.width, trunk.width, dtype=torch.float64)
    method = Catching()
    twin = fold_to_learn(clone(model), method)
    generator = torch.Generator(images.device).manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(twin):
        for batch in images.split(BATCH):
            method.caught.clear()
            seen = look(twin, batch.clone().requires_grad_())
            for _ in range(DRAWS):
                _add(moments, method.caught, drawn(seen, generator))
    return moments


def fold_along(model: ModelT, method: Base, basis: Tensor | None) -> ModelT:
    """Fold a model so that tokens are compared in these directions `[depth, C, rank]`, where the
    method has any."""
    fold_to_learn(model, method)
    set_basis(model, basis)
    return model


def set_basis(model: nn.Module, basis: Tensor | None) -> None:
    """Compare tokens in these directions, where the method has any."""
    if basis is not None and (own := basis_of(model)) is not None:
        with torch.no_grad():
            own.copy_(basis)


def basis_of(model: nn.Module) -> Tensor | None:
    """The directions in which a folded model compares tokens; None where its method has none."""
    learned = fold_of(model).learned
    return learned.basis if isinstance(learned, Directions | DirectedHeights) else None


def drawn(seen: Look, generator: torch.Generator) -> Tensor:
    """A number whose gradients have the Fisher information as their mean square: the logarithms of
    what a classifier says, each by the root of its likelihood and with a sign that is drawn; else
    the output in a direction that is."""
    if seen.logits is not None and seen.logits.shape[1] > 1:
        said = seen.logits.double().log_softmax(dim=1)
        weight = said.detach().exp().sqrt()
    else:
        output = next(x for x in (seen.logits, seen.embedding, seen.dense) if x is not None)
        said = F.normalize(output.double().flatten(1), dim=1)
        weight = torch.ones_like(said)
    signs = torch.randint(2, said.shape, generator=generator, device=said.device) * 2 - 1
    number: Tensor = (said * weight * signs).sum()
    return number


def _add(moments: Tensor, caught: Sequence[tuple[int, Tensor, int]], number: Tensor) -> None:
    """Add the squares of the gradients at the tokens that were caught."""
    tokens = [x for _, x, _ in caught]
    gradients = torch.autograd.grad(number, tokens, retain_graph=True, allow_unused=True)
    for (block, _, prefix), gradient in zip(caught, gradients, strict=True):
        if gradient is not None:
            rows = F.normalize(gradient[:, prefix:].double().flatten(1), dim=1)
            rows = rows.reshape(-1, gradient.shape[-1])
            moments[block] += (rows.T @ rows).cpu()


def _softened(moment: Tensor) -> Tensor:
    """`[C, rank]`: the first eigenvectors, times the fourth roots of their eigenvalues; all alike
    where nothing is noticed."""
    values, vectors = torch.linalg.eigh(moment)
    most = rank(len(moment))
    values = values[-most:].clamp(min=0)
    top = max(float(values[-1]), 0.0)
    lengths = (values / top).pow(0.25) if top else torch.ones_like(values)
    return torch.mul(vectors[:, -most:], lengths).float()


@dataclass(frozen=True, eq=False)
class Catching(Base):
    """A method that changes nothing, and keeps the tokens of every block.

    caught: block, tokens `[B, n, C]`, and how many of them come before the patches.
    """

    caught: list[tuple[int, Tensor, int]] = field(default_factory=list)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """A step for every block."""
        return tuple(Catch(block=block, caught=self.caught) for block in range(layout.depth))


@dataclass(frozen=True)
class Catch(Step):
    """Keeps the tokens of a block."""

    block: int = field(kw_only=True)
    caught: list[tuple[int, Tensor, int]] = field(kw_only=True)

    def reduce(self, x: Tensor, state: TokenState, view: View) -> tuple[Tensor, TokenState]:
        """Keep them."""
        self.caught.append((self.block, x, state.prefix))
        return x, state
