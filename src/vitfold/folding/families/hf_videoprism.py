"""Hugging Face's VideoPrism, which looks at space first and at time afterwards."""

from collections.abc import Mapping
from typing import Any, ClassVar

from vitfold.folding.families.common import Arguments, Grid
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_vivit import HFVivit
from vitfold.folding.families.registry import register_family

VIDEOPRISM = "videoprism.modeling_videoprism."


@register_family
class HFVideoPrism(HFVivit):
    """transformers' VideoPrism. The layers that look at space fold, every frame an image of its
    own; those that look at time, each place by itself, read dense tokens and stay as they are."""

    models: ClassVar = {
        VIDEOPRISM + "VideoPrismVisionModel": (
            "VideoPrismVisionModel",
            "VideoPrismVideoModel",
            "VideoPrismClipModel",
            "VideoPrismForVideoClassification",
        )
    }
    path: ClassVar = "spatial_layers"
    norm: ClassVar = "layernorm1"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "interpolate_pos_encoding")
    block_types: ClassVar[tuple[str, ...]] = (HF + VIDEOPRISM + "VideoPrismLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + VIDEOPRISM + "VideoPrismAttention",)
    prefix: Any = 0

    def grid(self, arguments: Arguments) -> Grid:
        grid = super().grid(arguments)
        return None if grid is None else grid[1:]

    def fused(self, attention: Any) -> Mapping[str, Any]:
        """Its logits are capped, which torch's attention does not do."""
        return {}
