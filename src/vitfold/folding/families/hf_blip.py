"""Hugging Face's BLIP, BLIP-2 and InstructBLIP: vision towers whose attention takes no bias."""

from typing import ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.biasless import Joint
from vitfold.folding.families.hf import HF
from vitfold.folding.families.registry import register_family

BLIP = "blip.modeling_blip.Blip"
BLIP2 = "blip_2.modeling_blip_2.Blip2"
INSTRUCT = "instructblip.modeling_instructblip.InstructBlip"
VIDEO = "instructblipvideo.modeling_instructblipvideo.InstructBlipVideo"


@register_family
class HFBlip(Joint):
    """The vision towers of transformers' BLIP, BLIP-2, InstructBLIP and InstructBLIPVideo."""

    models: ClassVar = {
        BLIP + "VisionModel": (
            "BlipVisionModel",
            "BlipModel",
            "BlipForConditionalGeneration",
            "BlipForImageTextRetrieval",
            "BlipForQuestionAnswering",
        ),
        BLIP2 + "VisionModel": (
            "Blip2VisionModel",
            "Blip2VisionModelWithProjection",
            "Blip2Model",
            "Blip2ForConditionalGeneration",
            "Blip2ForImageTextRetrieval",
        ),
        INSTRUCT + "VisionModel": (
            "InstructBlipVisionModel",
            "InstructBlipModel",
            "InstructBlipForConditionalGeneration",
        ),
        VIDEO + "VisionModel": (
            "InstructBlipVideoVisionModel",
            "InstructBlipVideoModel",
            "InstructBlipVideoForConditionalGeneration",
        ),
    }
    readers: ClassVar = frozenset(
        name
        for names in models.values()
        for name in names
        if name != "BlipModel" and not name.endswith("VisionModel")
    )
    path: ClassVar = "encoder.layers"
    attention: ClassVar = "self_attn"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "interpolate_pos_encoding")
    block_arguments: ClassVar[tuple[str, ...]] = ()
    block_types: ClassVar[tuple[str, ...]] = tuple(
        HF + place + "EncoderLayer" for place in (BLIP, BLIP2, INSTRUCT, VIDEO)
    )
    attention_types: ClassVar[tuple[str, ...]] = tuple(
        HF + place + "Attention" for place in (BLIP, BLIP2, INSTRUCT, VIDEO)
    )

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        return self.attended(block.self_attn, block.layer_norm1(x), attend) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.mlp(block.layer_norm2(x)) + x
