"""transformers' models whose projector joins squares of patches, each to one visual token."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.proxy import whole
from vitfold.folding.families.hf import HF
from vitfold.folding.hosts.base import Arguments, Host
from vitfold.folding.hosts.cut import Cut
from vitfold.folding.hosts.hf_tokens import layer_of
from vitfold.folding.hosts.registry import register_host

GEMMA = "gemma3.modeling_gemma3.Gemma3"
IDEFICS = "idefics3.modeling_idefics3.Idefics3"
INTERN = "internvl.modeling_internvl.InternVL"
MISTRAL = "mistral3.modeling_mistral3.Mistral3"
SMOL = "smolvlm.modeling_smolvlm.SmolVLM"

VIDEO = "give videos to a model that is folded with out='restored'"


@register_host
class HFGemma3(Host):
    """transformers' Gemma 3, whose projector takes means of squares."""

    models: ClassVar = (HF + GEMMA + "Model",)
    heads: ClassVar = (HF + GEMMA + "ForConditionalGeneration",)

    @property
    def side(self) -> int:
        return int(self.model.multi_modal_projector.kernel_size)

    def overrides(self, cut: Cut) -> dict[str, Any]:
        """Those means that stay are normalized and projected."""
        projector = self.model.multi_modal_projector
        norm = projector.mm_soft_emb_norm
        short = whole(projector, mm_soft_emb_norm=lambda means: norm(cut.take(means)))
        return {self.projector: lambda x: cut.spread(short(x), cut.shape(len(x)))}


@register_host
class HFIdefics3(Host):
    """transformers' Idefics3 and SmolVLM, whose connector lays the patches of squares side by
    side."""

    models: ClassVar = (HF + IDEFICS + "Model", HF + SMOL + "Model")
    heads: ClassVar = (
        HF + IDEFICS + "ForConditionalGeneration",
        HF + SMOL + "ForConditionalGeneration",
    )
    projector: ClassVar[str] = "connector"

    @property
    def side(self) -> int:
        return int(self.config.scale_factor)

    def overrides(self, cut: Cut) -> dict[str, Any]:
        connector = self.model.connector
        projection = cut.around(connector.modality_projection)
        return {self.projector: whole(connector, modality_projection=projection)}


@register_host
class HFInternVL(Host):
    """transformers' InternVL, which lays the patches of squares side by side, then projects."""

    models: ClassVar = (HF + INTERN + "Model",)
    heads: ClassVar = (HF + INTERN + "ForConditionalGeneration",)

    @property
    def side(self) -> int:
        return round(1 / float(self.config.downsample_ratio))

    def layer(self, arguments: Arguments, depth: int) -> int:
        chosen = arguments.get("vision_feature_layer")
        return layer_of(self.config.vision_feature_layer if chosen is None else chosen, depth)


@register_host
class HFMistral3(Host):
    """transformers' Mistral 3, whose tower is Pixtral's, for images of several sizes."""

    models: ClassVar = (HF + MISTRAL + "Model",)
    heads: ClassVar = (HF + MISTRAL + "ForConditionalGeneration",)

    @property
    def side(self) -> int:
        return int(self.config.spatial_merge_size)

    def layer(self, arguments: Arguments, depth: int) -> int:
        chosen = arguments.get("vision_feature_layer")
        return layer_of(self.config.vision_feature_layer if chosen is None else chosen, depth)

    def overrides(self, cut: Cut) -> dict[str, Any]:
        """Those squares that stay are joined and projected."""
        projector = self.model.multi_modal_projector
        merger = projector.patch_merger
        layer = merger.merging_layer
        joined = whole(merger, merging_layer=lambda squares: layer(cut.take(squares)))
        short = whole(projector, patch_merger=joined)

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return cut.spread(short(x, *args, **kwargs), cut.shape())

        return {self.projector: run}
