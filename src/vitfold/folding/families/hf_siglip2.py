"""Hugging Face's SigLIP 2: images of several shapes, as rows of patches that are padded."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.folding.families.common import Arguments, Grid, Size, blank_images, common_grid
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_clip import HFSiglip
from vitfold.folding.families.registry import register_family


@register_family
class HFSiglip2(HFSiglip):
    """The vision tower of transformers' SigLIP 2."""

    models: ClassVar = {
        "siglip2.modeling_siglip2.Siglip2VisionModel": (
            "Siglip2VisionModel",
            "Siglip2Model",
            "Siglip2ForImageClassification",
        )
    }
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "pixel_attention_mask",
        "spatial_shapes",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + "siglip2.modeling_siglip2.Siglip2EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "siglip2.modeling_siglip2.Siglip2Attention",)

    @property
    def size(self) -> Size:
        side = int(self.config.num_patches**0.5) * self.config.patch_size
        return int(self.config.num_channels), side, side

    def grid(self, arguments: Arguments) -> Grid:
        shapes = arguments.get("spatial_shapes")
        return None if shapes is None else common_grid(shapes)

    def padding(self, arguments: Arguments) -> Tensor | None:
        mask = arguments.get("pixel_attention_mask")
        return None if mask is None else mask.bool()

    def example(self, batch: int = 1) -> dict[str, Any]:
        channels, side, _ = self.size
        patch = self.config.patch_size
        patches = (side // patch) ** 2
        pixels = blank_images(self.trunk, (patches, channels * patch**2), batch)
        # The model looks at both, where it can.
        at = "cpu" if pixels.is_meta else pixels.device
        shape = torch.tensor([[side // patch] * 2] * batch, device=at)
        mask = None if pixels.is_meta else torch.ones(batch, patches, dtype=torch.long, device=at)
        return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shape}
