"""Hugging Face's vision towers whose layers are CLIP's under other names."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import showing, side_by_side
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.own import adding
from vitfold.folding.families.common import Arguments, key_bias
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_clip import HFClip
from vitfold.folding.families.registry import register_family
from vitfold.tokens.state import TokenState

ALT = "altclip.modeling_altclip.AltCLIP"
CHINESE = "chinese_clip.modeling_chinese_clip.ChineseCLIPVision"
SEG = "clipseg.modeling_clipseg.CLIPSeg"
META = "metaclip_2.modeling_metaclip_2.MetaClip2"
OWL = "owlvit.modeling_owlvit.OwlViT"
OWL2 = "owlv2.modeling_owlv2.Owlv2"
KOSMOS = "kosmos2.modeling_kosmos2.Kosmos2Vision"
IDEFICS = "idefics.vision.IdeficsVision"
GIT = "git.modeling_git.GitVision"
JANUS = "janus.modeling_janus.JanusVision"
IDEFICS2 = "idefics2.modeling_idefics2.Idefics2"
IDEFICS3 = "idefics3.modeling_idefics3.Idefics3"
SMOL = "smolvlm.modeling_smolvlm.SmolVLM"
AIM = "aimv2.modeling_aimv2.Aimv2"
OVIS = "ovis2.modeling_ovis2.Ovis2Vision"


@register_family
class HFLikeClip(HFClip):
    """The vision towers of AltCLIP, ChineseCLIP, CLIPSeg, MetaCLIP 2, OWL-ViT, OWLv2, Kosmos-2 and
    Idefics."""

    models: ClassVar = {
        ALT + "VisionModel": ("AltCLIPVisionModel", "AltCLIPModel"),
        CHINESE + "Model": ("ChineseCLIPVisionModel", "ChineseCLIPModel"),
        SEG + "VisionModel": (
            "CLIPSegVisionModel",
            "CLIPSegModel",
            "CLIPSegForImageSegmentation",
        ),
        META + "VisionModel": (
            "MetaClip2VisionModel",
            "MetaClip2VisionModelWithProjection",
            "MetaClip2Model",
            "MetaClip2ForImageClassification",
        ),
        OWL + "VisionTransformer": (
            "OwlViTVisionModel",
            "OwlViTModel",
            "OwlViTForObjectDetection",
        ),
        OWL2 + "VisionTransformer": (
            "Owlv2VisionModel",
            "Owlv2Model",
            "Owlv2ForObjectDetection",
        ),
        KOSMOS + "Transformer": ("Kosmos2Model", "Kosmos2ForConditionalGeneration"),
        IDEFICS + "Transformer": ("IdeficsModel", "IdeficsForVisionText2Text"),
    }
    readers: ClassVar = frozenset(
        {
            "CLIPSegForImageSegmentation",
            "MetaClip2ForImageClassification",
            "OwlViTForObjectDetection",
            "Owlv2ForObjectDetection",
            "Kosmos2Model",
            "Kosmos2ForConditionalGeneration",
            "IdeficsModel",
            "IdeficsForVisionText2Text",
        }
    )
    block_types: ClassVar[tuple[str, ...]] = (
        HF + CHINESE + "Layer",
        *(HF + place + "EncoderLayer" for place in (ALT, SEG, META, OWL, OWL2, KOSMOS, IDEFICS)),
    )
    attention_types: ClassVar[tuple[str, ...]] = tuple(
        HF + place + "Attention" for place in (ALT, CHINESE, SEG, META, OWL, OWL2, KOSMOS, IDEFICS)
    )


@register_family
class HFGit(HFClip):
    """The vision tower of transformers' GIT."""

    models: ClassVar = {GIT + "Model": ("GitVisionModel", "GitModel", "GitForCausalLM")}
    readers: ClassVar = frozenset({"GitModel", "GitForCausalLM"})
    path: ClassVar = "vision_model.encoder.layers"
    block_types: ClassVar[tuple[str, ...]] = (HF + GIT + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + GIT + "Attention",)


@register_family
class HFJanus(HFClip):
    """The vision tower of transformers' Janus: no token but patches."""

    models: ClassVar = {
        JANUS + "Model": ("JanusVisionModel", "JanusModel", "JanusForConditionalGeneration")
    }
    readers: ClassVar = frozenset()
    block_types: ClassVar[tuple[str, ...]] = (HF + JANUS + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + JANUS + "Attention",)
    prefix: Any = 0

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        """What its norms get has no axis of images any more."""
        name = f"{cue}_proj"
        show = side_by_side(show, attention.head_dim)
        return {name: showing(getattr(attention, name), show)}


@register_family
class HFIdefics2(HFClip):
    """The vision tower of transformers' Idefics2: no token but patches, of images that are
    padded."""

    models: ClassVar = {
        IDEFICS2 + "VisionTransformer": ("Idefics2Model", "Idefics2ForConditionalGeneration")
    }
    readers: ClassVar = frozenset()
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "patch_attention_mask")
    block_types: ClassVar[tuple[str, ...]] = (HF + IDEFICS2 + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + IDEFICS2 + "VisionAttention",)
    prefix: Any = 0

    def padding(self, arguments: Arguments) -> Tensor | None:
        mask = arguments.get("patch_attention_mask")
        return None if mask is None else mask.flatten(1).bool()


@register_family
class HFIdefics3(HFIdefics2):
    """The vision towers of transformers' Idefics3 and SmolVLM."""

    models: ClassVar = {
        IDEFICS3 + "VisionTransformer": (
            "Idefics3VisionTransformer",
            "Idefics3Model",
            "Idefics3ForConditionalGeneration",
        ),
        SMOL + "VisionTransformer": (
            "SmolVLMVisionTransformer",
            "SmolVLMModel",
            "SmolVLMForConditionalGeneration",
        ),
    }
    hands_down: ClassVar = False
    block_types: ClassVar[tuple[str, ...]] = tuple(
        HF + place + "EncoderLayer" for place in (IDEFICS3, SMOL)
    )
    attention_types: ClassVar[tuple[str, ...]] = tuple(
        HF + place + "VisionAttention" for place in (IDEFICS3, SMOL)
    )


@register_family
class HFAimv2(HFClip):
    """The vision tower of transformers' AIMv2: no token but patches, pooled by attention."""

    models: ClassVar = {AIM + "VisionModel": ("Aimv2VisionModel", "Aimv2Model")}
    readers: ClassVar = frozenset()
    attention: ClassVar = "attention"
    block_types: ClassVar[tuple[str, ...]] = (HF + AIM + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + AIM + "Attention",)
    prefix: Any = 0

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        return x + attend(block.attention, block.rms_norm1(x), attention_mask=bias)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.ffn(block.rms_norm2(x))

    def pool(self, head: Any, x: Tensor, state: TokenState) -> Tensor:
        with adding(key_bias(x, state)[:, None, None]):
            pooled: Tensor = head(x)
        return pooled


@register_family
class HFOvis2(HFAimv2):
    """The vision tower of transformers' Ovis2, which looks words of its own up for patches."""

    models: ClassVar = {OVIS + "Model": ("Ovis2Model", "Ovis2ForConditionalGeneration")}
    path: ClassVar = "transformer.encoder.layers"
    block_types: ClassVar[tuple[str, ...]] = (HF + OVIS + "EncoderLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + OVIS + "Attention",)

    def read_again(self, outputs: Any, state: TokenState) -> Any:
        """Nothing: what it hands out are blocks of patches."""
        return outputs
