"""Hugging Face's Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the vision towers, whose patches come packed,
in the order of the squares that a merger joins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.errors import ShapeError
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, third
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.packed import PackedAttend
from vitfold.folding.families.common import Arguments, Grid, Size, blank_images, pair
from vitfold.folding.families.hf import HF, check_bias
from vitfold.folding.families.hf_packed import SIDE, TABLES, Flat
from vitfold.folding.families.registry import register_family
from vitfold.folding.run import Run
from vitfold.tokens.layout import MANY, Layout
from vitfold.tokens.packed import Packed

QWEN2 = "qwen2_vl.modeling_qwen2_vl."
QWEN25 = "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_"
QWEN3 = "qwen3_vl.modeling_qwen3_vl.Qwen3VL"
MOE = "qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoe"


@register_family
class HFQwen(Flat):
    """The vision towers of transformers' Qwen2-VL and Qwen3-VL. What the latter hands out of single
    blocks is dense."""

    models: ClassVar = {
        QWEN2 + "Qwen2VisionTransformerPretrainedModel": (
            "Qwen2VLModel",
            "Qwen2VLForConditionalGeneration",
        ),
        QWEN3 + "VisionModel": (
            "Qwen3VLVisionModel",
            "Qwen3VLModel",
            "Qwen3VLForConditionalGeneration",
        ),
        MOE + "VisionModel": (
            "Qwen3VLMoeVisionModel",
            "Qwen3VLMoeModel",
            "Qwen3VLMoeForConditionalGeneration",
        ),
    }
    path: ClassVar = "blocks"
    block_arguments: ClassVar[tuple[str, ...]] = ("cu_seqlens", TABLES, "max_seqlen")
    arguments: ClassVar[tuple[str, ...]] = ("hidden_states", "grid_thw")
    attention: ClassVar = "attn"
    block_types: ClassVar[tuple[str, ...]] = (
        HF + QWEN2 + "Qwen2VLVisionBlock",
        HF + QWEN3 + "VisionBlock",
        HF + MOE + "VisionBlock",
    )
    attention_types: ClassVar[tuple[str, ...]] = (
        HF + QWEN2 + "VisionAttention",
        HF + QWEN3 + "VisionAttention",
        HF + MOE + "VisionAttention",
    )

    @property
    def width(self) -> int:
        return int(getattr(self.config, "embed_dim", self.config.hidden_size))

    @property
    def size(self) -> Size:
        """What it sees has no size of its own: an example."""
        height, width = pair(self.config.patch_size)
        return int(self.config.in_channels), SIDE * height, SIDE * width

    def grid(self, arguments: Arguments) -> Grid:
        return None if arguments.get("grid_thw") is None else MANY

    def order(self, arguments: Arguments) -> Tensor | None:
        """None: so they come."""
        merged = int(self.config.spatial_merge_size)
        if self.square != merged:
            raise ShapeError(f"squares of {self.square} patches: the merger joins {merged}")
        return None

    def layout(self) -> Layout:
        return replace(self.layout_of((SIDE, SIDE)), grid=MANY)

    def example(self, batch: int = 1) -> dict[str, Any]:
        channels, height, width = self.size
        values = channels * (height // SIDE) * (width // SIDE) * self.config.temporal_patch_size
        patches = blank_images(self.trunk, (SIDE**2, values), batch).flatten(0, 1)
        shapes = torch.tensor([[1, SIDE, SIDE]] * batch)
        return {"hidden_states": patches, "grid_thw": shapes}

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run.visible = frozenset(getattr(self.trunk, "deepstack_visual_indexes", ()))
        return super().call(method, run, args, kwargs)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        normed, tables = block.norm1(x)[0], self.tables(attend)
        if type(attend) is PackedAttend and attend.cue is None and not attend.state.changed:
            return x + block.attn(normed, **attend.arguments)
        check_bias(block.attn, attend)
        self.place(attend)
        attend.join(None, x)
        ends = torch.tensor([0, x.shape[1]], dtype=torch.int32, device=x.device)
        return x + attend(block.attn, normed, cu_seqlens=ends, position_embeddings=tables)

    def place(self, attend: Attend) -> None:
        """Say which tokens attend to each other: those of an image."""

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.mlp(block.norm2(x))

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        one = third(cue, attention.num_heads, show)
        return {"qkv": showing(attention.qkv, lambda y: one(y.unsqueeze(0)))}


@register_family
class HFQwenWindowed(HFQwen):
    """The vision tower of transformers' Qwen2.5-VL, most of whose blocks attend within windows.
    Whole squares leave, so that the tokens of a window stay together: it goes on with those that it
    has left."""

    models: ClassVar = {
        QWEN25 + "VisionTransformerPretrainedModel": (
            "Qwen2_5_VisionTransformerPretrainedModel",
            "Qwen2_5_VLModel",
            "Qwen2_5_VLForConditionalGeneration",
        )
    }
    block_types: ClassVar[tuple[str, ...]] = (HF + QWEN25 + "VLVisionBlock",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + QWEN25 + "VLVisionAttention",)

    def __init__(self, trunk: Any, hosts: Sequence[nn.Module] = ()) -> None:
        super().__init__(trunk, hosts)
        self.square = int(self.config.spatial_merge_size)

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    def place(self, attend: Attend) -> None:
        if isinstance(attend.state, Packed):
            attend.state = in_windows(attend.state, attend.arguments["cu_seqlens"])


def in_windows(state: Packed, ends: Tensor) -> Packed:
    """A state whose images are the windows that end at `ends[W + 1]` among original tokens, which
    still lie in their order: those that have tokens left."""
    if state.origin is None:
        lengths = ends.diff().tolist()
    else:
        window = torch.bucketize(state.origin[0], ends.to(state.origin), right=True)
        lengths = torch.bincount(window).tolist()
    left = tuple(int(length) for length in lengths if length)
    return replace(state, lengths=left, batch=len(left))
