"""Hugging Face's MLCD: CLIP's layers with rotary positions, of the class token too."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_clip import HFClip
from vitfold.folding.families.registry import register_family

MLCD = "mlcd.modeling_mlcd.MLCD"


@register_family
class HFMLCD(HFClip):
    """The vision tower of transformers' MLCD."""

    models: ClassVar = {MLCD + "VisionModel": ("MLCDVisionModel",)}
    readers: ClassVar = frozenset()
    block_types: ClassVar[tuple[str, ...]] = (HF + MLCD + "EncoderLayer",)
    block_arguments: ClassVar[tuple[str, ...]] = ("position_embeddings", "attention_mask")
    attention_types: ClassVar[tuple[str, ...]] = (HF + MLCD + "Attention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.self_attn, x, attend)
        tables = [_rows(table, x, attend) for table in attend.arguments["position_embeddings"]]
        normed = block.layer_norm1(x)
        return x + attend(block.self_attn, normed, position_embeddings=tables, attention_mask=bias)


def _rows(table: Tensor, x: Tensor, attend: Attend) -> Any:
    """The rows of a table `[1 + N, d]` for current tokens."""
    rows = attend.positions(table[1:], table[0])
    if rows.dim() < 4:  # nothing left
        return table
    rows = rows[:, 0]
    if rows.shape[1] < x.shape[1]:
        rows = torch.cat([table[:1].expand(len(rows), -1, -1), rows], dim=1)
    return _Batched(rows)


class _Batched:
    """A table that has its axis of images, to attention that would put one before it."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def unsqueeze(self, _: int) -> Tensor:
        return self.rows
