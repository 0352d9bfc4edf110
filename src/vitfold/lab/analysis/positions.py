"""What a model's position embeddings know of the grid."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.families import find


def position_similarity(model: nn.Module) -> Tensor:
    """`[height, width, height, width]`: the cosine of the position embeddings of two patches."""
    trunk = find(model)
    height, width = trunk.layout().grid or (0, 0)
    patches = height * width
    table = _table(trunk.trunk)
    if table is None or table.shape[-2] < patches:
        raise UnsupportedModel(
            f"{type(trunk.trunk).__name__} has no learned position for every patch: its positions "
            "lie in attention"
        )
    unit = F.normalize(table.detach().reshape(-1, table.shape[-1])[-patches:].float(), dim=-1)
    return (unit @ unit.T).view(height, width, height, width)


def _table(trunk: Any) -> Tensor | None:
    """The embeddings, those of prefix tokens first."""
    for holder in (trunk, getattr(trunk, "embeddings", None)):
        for name in ("pos_embed", "position_embeddings", "position_embedding"):
            table = getattr(holder, name, None)
            table = getattr(table, "weight", table)
            if isinstance(table, Tensor):
                return table
    return None
