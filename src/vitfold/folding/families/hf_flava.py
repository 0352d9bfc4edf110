"""Hugging Face's FLAVA: the image encoder, whose layers hand out tuples."""

from typing import ClassVar

from vitfold.folding.families.biasless import InParts
from vitfold.folding.families.hf import HF
from vitfold.folding.families.registry import register_family

FLAVA = "flava.modeling_flava.Flava"


@register_family
class HFFlava(InParts):
    """The image encoder of transformers' FLAVA."""

    models: ClassVar = {
        FLAVA + "ImageModel": ("FlavaImageModel", "FlavaModel", "FlavaForPreTraining")
    }
    readers: ClassVar = frozenset({"FlavaModel", "FlavaForPreTraining"})
    hands_down: ClassVar = False
    tuples: ClassVar = 1
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "bool_masked_pos",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_arguments: ClassVar[tuple[str, ...]] = ("attention_mask",)
    block_types: ClassVar[tuple[str, ...]] = (HF + FLAVA + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + FLAVA + "SelfAttention",)
