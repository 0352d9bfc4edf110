"""Hugging Face's vision towers that take images of several sizes one after another: Pixtral, that
of PaddleOCR-VL, and VideoLLaMA 3, whose frames are images of their own."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, side_by_side
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.packed import PackedAttend
from vitfold.folding.families.common import Arguments, Grid, Size, blank_images, common_grid
from vitfold.folding.families.hf import HF, HFFamily, check_bias
from vitfold.folding.families.registry import register_family
from vitfold.tokens.layout import MANY
from vitfold.tokens.squares import in_squares
from vitfold.tokens.state import TokenState

PIXTRAL = "pixtral.modeling_pixtral.Pixtral"
PADDLE = "paddleocr_vl.modeling_paddleocr_vl.PaddleOCRVision"
LLAMA = "video_llama_3.modeling_video_llama_3.VideoLlama3Vision"

TABLES = "position_embeddings"

SIDE = 16
"""Patches along the side of an example."""


class PackedFamily(HFFamily):
    """Base of towers of which every image attends by itself, whatever mask says so."""

    prefix: Any = 0
    attention: ClassVar = "self_attn"

    def tables(self, attend: Attend) -> tuple[Tensor, ...]:
        """Cosines and sines `[T, d]` of current tokens."""
        tables = attend.arguments[TABLES]
        if not attend.state.changed:
            return tuple(tables)
        return tuple(attend.positions(t, t.new_zeros(()))[0, 0] for t in tables)


def in_order(shapes: Sequence[tuple[int, int]], side: int, device: torch.device) -> Tensor:
    """`[1, T]`: the patches of images of such shapes, which come row by row, in the order of the
    squares of each."""
    starts = itertools.accumulate((height * width for height, width in shapes), initial=0)
    rows = [
        in_squares(shape, side, device) + start
        for shape, start in zip(shapes, starts, strict=False)
    ]
    return torch.cat(rows).unsqueeze(0)


@register_family
class HFPixtral(PackedFamily):
    """transformers' Pixtral, which keeps images apart by a mask."""

    models: ClassVar = {PIXTRAL + "VisionModel": ("PixtralVisionModel",)}
    path: ClassVar = "transformer.layers"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    block_types: ClassVar[tuple[str, ...]] = (HF + PIXTRAL + "AttentionLayer",)
    block_arguments: ClassVar[tuple[str, ...]] = ("attention_mask", TABLES)
    attention: ClassVar = "attention"
    attention_types: ClassVar[tuple[str, ...]] = (HF + PIXTRAL + "Attention",)

    def grid(self, arguments: Arguments) -> Grid:
        shapes = self.shapes(arguments)
        return None if shapes is None else common_grid(torch.tensor(shapes))

    def lengths(self, arguments: Arguments) -> Sequence[int] | None:
        shapes = self.shapes(arguments)
        return None if shapes is None else [height * width for height, width in shapes]

    def order(self, arguments: Arguments) -> Tensor | None:
        shapes, device = self.shapes(arguments) or [], next(self.trunk.parameters()).device
        return in_order(shapes, self.square, device)

    def shapes(self, arguments: Arguments) -> list[tuple[int, int]] | None:
        """Rows and columns of patches of every image."""
        images, sizes = arguments.get("pixel_values"), arguments.get("image_sizes")
        if images is None:
            return None
        if sizes is None:
            sizes = [images.shape[-2:]] * len(images)
        sides = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        patch = self.config.patch_size
        return [(int(height) // patch, int(width) // patch) for height, width in sides]

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        normed, tables = block.attention_norm(x), self.tables(attend)
        if type(attend) is PackedAttend and attend.cue is None and not attend.state.changed:
            mask = attend.arguments.get("attention_mask")
            out = block.attention(normed, attention_mask=mask, position_embeddings=tables)[0]
            return x + out
        check_bias(block.attention, attend)
        attend.join(None, x)
        return x + attend(block.attention, normed, position_embeddings=tables)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.feed_forward(block.ffn_norm(x))


class Flat(PackedFamily):
    """Base of towers whose tokens lie in one row, and whose attention goes by where images end."""

    flat: ClassVar = True
    block_arguments: ClassVar[tuple[str, ...]] = ("cu_seqlens", TABLES)

    def grid(self, arguments: Arguments) -> Grid:
        shapes, merged = arguments.get("grid_thw"), arguments.get("merge_sizes")
        if shapes is None:
            return None
        if merged is not None and bool((merged != 1).any()):
            return MANY  # patches come in the order of the squares that are merged
        return common_grid(shapes[:, 1:])

    def lengths(self, arguments: Arguments) -> Sequence[int] | None:
        shapes = arguments.get("grid_thw")
        if shapes is None:
            return None
        return [h * w for frames, h, w in shapes.tolist() for _ in range(frames)]

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        check_bias(block.self_attn, attend)
        attend.join(None, x)
        ends = torch.tensor([0, x.shape[1]], dtype=torch.int32, device=x.device)
        normed, tables = block.layer_norm1(x)[0], self.tables(attend)
        return x + attend(block.self_attn, normed, cu_seqlens=ends, position_embeddings=tables)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        name = f"{cue}_proj"
        by_heads = side_by_side(show, attention.head_dim)
        return {name: showing(getattr(attention, name), lambda y: by_heads(y.unsqueeze(0)))}

    def read_again(self, outputs: Any, state: TokenState) -> Any:
        """Nothing: what it hands out may be squares of patches."""
        return outputs

    def squares(self, images: int) -> tuple[int, Tensor]:
        """Patches along the side of an image, and the shapes of so many images."""
        side = self.size[1] // int(self.config.patch_size)
        return side, torch.tensor([[1, side, side]] * images)


@register_family
class HFPaddleOCR(Flat):
    """The vision tower of transformers' PaddleOCR-VL."""

    models: ClassVar = {
        PADDLE + "Transformer": (
            "PaddleOCRVisionModel",
            "PaddleOCRVLModel",
            "PaddleOCRVLForConditionalGeneration",
        )
    }
    path: ClassVar = "encoder.layers"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "attention_mask", "grid_thw")
    block_types: ClassVar[tuple[str, ...]] = (HF + PADDLE + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + PADDLE + "Attention",)

    def example(self, batch: int = 1) -> dict[str, Any]:
        side, shapes = self.squares(batch)
        patch = self.config.patch_size
        size = (batch * side**2, int(self.config.num_channels), patch, patch)
        return {"pixel_values": blank_images(self.trunk, size, 1), "grid_thw": shapes}


@register_family
class HFVideoLlama3(Flat):
    """The vision tower of transformers' VideoLLaMA 3."""

    models: ClassVar = {
        LLAMA + "Model": (
            "VideoLlama3VisionModel",
            "VideoLlama3Model",
            "VideoLlama3ForConditionalGeneration",
        )
    }
    path: ClassVar = "encoder.layers"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "grid_thw", "merge_sizes")
    block_types: ClassVar[tuple[str, ...]] = (HF + LLAMA + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + LLAMA + "Attention",)

    @property
    def size(self) -> Size:
        """What it sees has no size of its own: an example."""
        side = SIDE * int(self.config.patch_size)
        return int(self.config.num_channels), side, side

    def example(self, batch: int = 1) -> dict[str, Any]:
        side, shapes = self.squares(batch)
        width = int(self.config.num_channels) * self.config.patch_size**2
        pixels = blank_images(self.trunk, (side**2, width), batch).flatten(0, 1)
        merged = torch.ones(batch, dtype=torch.long)
        return {"pixel_values": pixels, "grid_thw": shapes, "merge_sizes": merged}
