"""transformers' models whose projector sees the tokens of a tower one by one."""

from typing import ClassVar

from vitfold.folding.families.hf import HF
from vitfold.folding.hosts.base import Arguments, Host
from vitfold.folding.hosts.registry import register_host


def layer_of(chosen: int | list[int], depth: int) -> int:
    """After how many blocks hidden states are taken that are counted as transformers counts them;
    of several, the last."""
    several = [chosen] if isinstance(chosen, int) else chosen
    return max(layer if layer >= 0 else depth + 1 + layer for layer in several)


@register_host
class HFLlava(Host):
    """transformers' LLaVA, whose tower is CLIP's, SigLIP's or Pixtral's."""

    models: ClassVar = (HF + "llava.modeling_llava.LlavaModel",)
    heads: ClassVar = (HF + "llava.modeling_llava.LlavaForConditionalGeneration",)

    def layer(self, arguments: Arguments, depth: int) -> int:
        chosen = arguments.get("vision_feature_layer")
        return layer_of(self.config.vision_feature_layer if chosen is None else chosen, depth)

    def prefix(self, arguments: Arguments) -> bool:
        chosen = arguments.get("vision_feature_select_strategy")
        return bool((chosen or self.config.vision_feature_select_strategy) == "full")


@register_host
class HFPaliGemma(Host):
    """transformers' PaliGemma, all three of it."""

    models: ClassVar = (HF + "paligemma.modeling_paligemma.PaliGemmaModel",)
    heads: ClassVar = (HF + "paligemma.modeling_paligemma.PaliGemmaForConditionalGeneration",)


@register_host
class HFDeepseekVL(Host):
    """transformers' DeepSeek-VL of one tower."""

    models: ClassVar = (HF + "deepseek_vl.modeling_deepseek_vl.DeepseekVLModel",)
    heads: ClassVar = (HF + "deepseek_vl.modeling_deepseek_vl.DeepseekVLForConditionalGeneration",)
    projector: ClassVar[str] = "aligner"
