"""Hugging Face's ViViT, whose tubelets attend over time and space at once."""

from collections.abc import Sequence
from typing import ClassVar

from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_video import HFVideoFamily
from vitfold.folding.families.hf_vit import HFViT
from vitfold.folding.families.registry import register_family

VIVIT = "vivit.modeling_vivit."


@register_family
class HFVivit(HFVideoFamily, HFViT):
    """transformers' ViViT, a vision transformer with a class token: its blocks are those of ViT."""

    models: ClassVar = {VIVIT + "VivitModel": ("VivitModel", "VivitForVideoClassification")}
    readers: ClassVar = frozenset()
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + VIVIT + "VivitLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + VIVIT + "VivitAttention",)

    @property
    def tubelet(self) -> Sequence[int]:
        return tuple(self.config.tubelet_size)
