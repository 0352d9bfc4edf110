"""Hugging Face's SAM 3: windows in which positions turn queries and keys."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, side_by_side
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.own import adding
from vitfold.folding.families.common import Grid
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.windowed import Windowed
from vitfold.tokens.layout import Layout

SAM3 = "sam3.modeling_sam3.Sam3ViT"


@register_family
class HFSam3(Windowed, HFFamily):
    """transformers' SAM 3: the trunk of its vision model. Text, prompts and masks read what that
    hands out, dense."""

    models: ClassVar = {
        SAM3 + "Model": ("Sam3ViTModel", "Sam3VisionModel", "Sam3Model", "Sam3LiteTextModel")
    }
    path: ClassVar = "layers"
    block_arguments: ClassVar[tuple[str, ...]] = ()
    block_types: ClassVar[tuple[str, ...]] = (HF + SAM3 + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + SAM3 + "RoPEAttention",)

    def layout_of(self, grid: Grid) -> Layout:
        """Padding of windows is refused: its keys are turned, and so not all the same."""
        side = int(self.config.window_size)
        if grid and side and any(length % side for length in grid):
            down, across = grid
            raise UnsupportedModel(
                f"a grid of {down} x {across} patches fills no windows of {side} x {side}, and "
                "padding cannot be folded here: give images whose sides are a multiple of "
                f"{side * int(self.config.patch_size)}"
            )
        return super().layout_of(grid)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        normed = block.layer_norm1(x).unsqueeze(1)
        tables = block.rotary_emb(normed, block.position_ids)
        places = attend.state.origin
        if places is not None:
            tables = [table[0][places].unsqueeze(1) for table in tables]
        bias = attend.sizes(x) if attend.proportional else None
        with contextlib.nullcontext() if bias is None else adding(bias):
            out = attend(block.attention, normed, position_embeddings=tuple(tables))
        return x + out.squeeze(1)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.dropout(block.mlp(block.layer_norm2(x)))

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        """Torch's attention, to which sizes are added."""
        return self.fused(attention)

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        """Its projections see a map, of one row."""
        name, heads = f"{cue}_proj", side_by_side(show, attention.head_dim)
        return {name: showing(getattr(attention, name), lambda y: heads(y.squeeze(1)))}
