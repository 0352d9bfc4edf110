"""Decoders of a segmenter: from the tokens of patches to the logits of every patch."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

HEAD = 64
"""Channels of an attention head."""


class Linear(nn.Module):
    """One linear layer, on every patch by itself."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """`[B, N, classes]` from `[B, N, C]`."""
        logits: Tensor = self.head(patches)
        return logits


class MaskTransformer(nn.Module):
    """Classes are tokens of their own, which attend with the patches; a patch has a class by how
    much the two resemble each other in the end (Strudel et al., 2021)."""

    def __init__(self, width: int, classes: int, depth: int = 2) -> None:
        super().__init__()
        self.enter = nn.Linear(width, width)
        self.classes = nn.Parameter(torch.zeros(1, classes, width))
        self.blocks = nn.Sequential(*(Block(width, _heads(width)) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.to_patch = nn.Linear(width, width, bias=False)
        self.to_class = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(classes)
        trunc_normal_(self.classes, std=0.02)
        for linear in (self.enter, self.to_patch, self.to_class):
            trunc_normal_(linear.weight, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """`[B, N, classes]` from `[B, N, C]`."""
        number = patches.shape[1]
        classes = self.classes.expand(patches.shape[0], -1, -1)
        x = self.norm(self.blocks(torch.cat([self.enter(patches), classes], dim=1)))
        each = F.normalize(self.to_patch(x[:, :number]), dim=-1)
        of = F.normalize(self.to_class(x[:, number:]), dim=-1)
        logits: Tensor = self.mask_norm(each @ of.transpose(1, 2))
        return logits


def _heads(width: int) -> int:
    """As many heads of the usual width as divide the channels."""
    return next(heads for heads in range(max(width // HEAD, 1), 0, -1) if width % heads == 0)


DECODERS: Mapping[str, type[Linear | MaskTransformer]] = {
    "linear": Linear,
    "mask": MaskTransformer,
}
"""The decoders by name."""
