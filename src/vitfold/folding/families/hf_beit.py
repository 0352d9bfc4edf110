"""Hugging Face's BEiT, whose layers make their relative position bias themselves."""

from typing import ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily, check_bias
from vitfold.folding.families.registry import register_family

BEIT = "beit.modeling_beit."


@register_family
class HFBeit(HFFamily):
    """transformers' BEiT, with a relative position bias in every layer, or one for all."""

    models: ClassVar = {
        BEIT + "BeitModel": (
            "BeitModel",
            "BeitForImageClassification",
            "BeitForMaskedImageModeling",
            "BeitForSemanticSegmentation",
            "BeitBackbone",
        )
    }
    readers: ClassVar = frozenset(
        {"BeitForMaskedImageModeling", "BeitForSemanticSegmentation", "BeitBackbone"}
    )
    path: ClassVar = "layers"
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "bool_masked_pos",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + BEIT + "BeitLayer",)
    block_arguments: ClassVar[tuple[str, ...]] = (
        "attention_mask",
        "interpolate_pos_encoding",
        "resolution",
    )
    attention_types: ClassVar[tuple[str, ...]] = (HF + BEIT + "BeitAttention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        check_bias(block.attention, attend)
        bias = attend.arguments.get("attention_mask")
        if block.relative_position_bias is not None:
            own = _own_bias(block, attend)
            bias = own if bias is None else own + bias
        bias = attend.join(bias, x)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return block.drop_path(block.lambda_1 * block.dropout(out)) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        out = block.dropout(block.mlp(block.layernorm_after(x)))
        return block.drop_path(block.lambda_2 * out) + x


def _own_bias(block: Block, attend: Attend) -> Tensor:
    height, width = attend.arguments["resolution"]
    return block.relative_position_bias(
        (height // block.patch_size, width // block.patch_size),
        attend.arguments.get("interpolate_pos_encoding", False),
        dim_size=attend.state.tokens,
    )
