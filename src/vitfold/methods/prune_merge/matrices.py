"""What PruneMerge learns: for every block a matrix that merges patches, and one that restores
them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.methods.learned import Learned
from vitfold.methods.prune_merge.step import Mix
from vitfold.methods.prune_merge.structure import AROUND, Groups
from vitfold.methods.step import Plan
from vitfold.tokens.layout import Grid, Layout
from vitfold.tokens.mixing import Mixture


class Matrices(Learned):
    """Two matrices for every block that is compressed.

    merge: by block, `[K, N]`: the patches that it sees, out of all.
    restore: by block, `[N, K]`: all, out of those.
    """

    def __init__(
        self,
        structure: Mapping[int, Groups],
        scores: Mapping[int, Sequence[float]],
        grid: Grid,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.structure, self.grid = dict(structure), grid
        self.merge, self.restore = nn.ParameterDict(), nn.ParameterDict()
        for block, group in structure.items():
            merge = _weights(group, scores[block])
            # Rows of disjoint supports: the pseudo-inverse, without a decomposition. Contiguous,
            # as sharding wants all parameters.
            restore = (merge.T / merge.square().sum(dim=1)).contiguous()
            self.merge[str(block)] = nn.Parameter(merge)
            self.restore[str(block)] = nn.Parameter(restore)
            self.register_buffer(f"aside_{block}", _aside(group, shortcut), persistent=False)
            self.register_buffer(f"seat_{block}", merge.argmax(dim=1), persistent=False)
            self.register_buffer(f"group_{block}", torch.tensor(group), persistent=False)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        if layout.grid != self.grid:
            raise MethodError(
                f"the matrices are for {_by(self.grid)} patches, these images have "
                f"{_by(layout.grid or (layout.patches, 1))}: give images of that size, fold with "
                "method.resize(grid), or search again"
            )
        return tuple(self._step(block) for block in range(layout.depth))

    def _step(self, block: int) -> Mix | None:
        if block not in self.structure:
            return None
        mixture = Mixture(
            self.merge[str(block)],
            self.restore[str(block)],
            self.get_buffer(f"aside_{block}"),
            self.get_buffer(f"seat_{block}"),
            self.get_buffer(f"group_{block}"),
        )
        group = self.structure[block]
        restores = block + 1 not in self.structure
        return Mix(aside=len(group) - max(group) - 1, mixture=mixture, restores=restores)


def _weights(group: Groups, scores: Sequence[float]) -> Tensor:
    """`[K, N]`: every slot a mean of its patches, weighted by their scores."""
    slots = max(group) + 1
    slot = torch.tensor(group)
    member = slot == torch.arange(slots).unsqueeze(1)
    weight = torch.tensor(scores, dtype=torch.float64).expand(slots, -1) * member
    total = weight.sum(dim=1, keepdim=True)
    even = member / member.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weight / total, even).float()


def _aside(group: Groups, shortcut: bool) -> Tensor:
    """The patches that go around a block, and come back."""
    around = [patch for patch, slot in enumerate(group) if slot == AROUND]
    return torch.tensor(around if shortcut else [], dtype=torch.long)


def _by(grid: Grid) -> str:
    return " x ".join(map(str, grid))
