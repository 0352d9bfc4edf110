"""Hugging Face's Data2Vec for images: BEiT in parts, whose attention makes its positions itself."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.biasless import Separate
from vitfold.folding.families.hf import HF
from vitfold.folding.families.registry import register_family

DATA2VEC = "data2vec.modeling_data2vec_vision.Data2VecVision"


@register_family
class HFData2Vec(Separate):
    """transformers' Data2VecVision, with a relative position bias in every layer, or one for
    all."""

    models: ClassVar = {
        DATA2VEC + "Model": (
            "Data2VecVisionModel",
            "Data2VecVisionForImageClassification",
            "Data2VecVisionForSemanticSegmentation",
        )
    }
    readers: ClassVar = frozenset({"Data2VecVisionForSemanticSegmentation"})
    hands_down: ClassVar = False
    tuples: ClassVar = 1
    path: ClassVar = "encoder.layer"
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos")
    block_types: ClassVar[tuple[str, ...]] = (HF + DATA2VEC + "Layer",)
    block_arguments: ClassVar[tuple[str, ...]] = (
        "output_attentions",
        "relative_position_bias",
        "interpolate_pos_encoding",
        "resolution",
    )
    attention: ClassVar = "attention.attention"
    attention_types: ClassVar[tuple[str, ...]] = (
        HF + DATA2VEC + "SelfAttention",
        HF + DATA2VEC + "SdpaSelfAttention",
    )

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        attention, normed = block.attention.attention, block.layernorm_before(x)
        out = attend(attention, normed, **_positions(attention, x, attend))
        out = block.attention.output(out, normed)
        return block.drop_path(out if block.lambda_1 is None else block.lambda_1 * out) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        out = block.output(block.intermediate(block.layernorm_after(x)))
        return block.drop_path(out if block.lambda_2 is None else block.lambda_2 * out) + x

    def fused(self, attention: Any) -> Mapping[str, Any]:
        return {"forward": _fused}

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        return {"has_relative_position_bias": False}


NAMES = ("relative_position_bias", "interpolate_pos_encoding", "resolution")


def _positions(attention: Any, x: Tensor, attend: Attend) -> dict[str, Any]:
    """What the attention of current tokens gets: what the block got, or one bias for them."""
    given = {name: attend.arguments[name] for name in NAMES if name in attend.arguments}
    if type(attend) is Attend and attend.state.origin is None:
        return given
    return given | {"relative_position_bias": attend.join(_bias(attention, given, attend), x)}


def _bias(attention: Any, given: Mapping[str, Any], attend: Attend) -> Tensor | None:
    """The bias of a layer, and that of all layers, over original tokens."""
    shared: Tensor | None = given.get("relative_position_bias")
    if not attention.has_relative_position_bias:
        return shared
    patch = attention.config.patch_size
    own: Tensor = attention.relative_position_bias(
        tuple(side // patch for side in given["resolution"]),
        given.get("interpolate_pos_encoding", False),
        dim_size=attend.state.tokens,
    )
    return own if shared is None else own + shared


def _fused(
    attention: Any, x: Tensor, relative_position_bias: Tensor | None = None, **_: Any
) -> Tensor:
    return Separate.biased(attention, x, relative_position_bias)
