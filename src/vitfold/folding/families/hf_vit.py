"""Hugging Face's ViT and DeiT, and those of the same layers: ViT-MSN, I-JEPA, Pixio."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family


@register_family
class HFViT(HFFamily):
    """transformers' ViT."""

    models: ClassVar = {
        "vit.modeling_vit.ViTModel": (
            "ViTModel",
            "ViTForImageClassification",
            "ViTForMaskedImageModeling",
        )
    }
    readers: ClassVar = frozenset({"ViTForMaskedImageModeling"})
    path: ClassVar = "layers"
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "bool_masked_pos",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + "vit.modeling_vit.ViTLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "vit.modeling_vit.ViTAttention",)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return block.dropout(out) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.dropout(block.mlp(block.layernorm_after(x))) + x


@register_family
class HFDeiT(HFViT):
    """transformers' DeiT, which has a distillation token."""

    models: ClassVar = {
        "deit.modeling_deit.DeiTModel": (
            "DeiTModel",
            "DeiTForImageClassification",
            "DeiTForImageClassificationWithTeacher",
            "DeiTForMaskedImageModeling",
        )
    }
    readers: ClassVar = frozenset({"DeiTForMaskedImageModeling"})
    block_types: ClassVar[tuple[str, ...]] = (HF + "deit.modeling_deit.DeiTLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "deit.modeling_deit.DeiTAttention",)
    prefix: Any = 2


@register_family
class HFViTMSN(HFViT):
    """transformers' ViT-MSN."""

    models: ClassVar = {
        "vit_msn.modeling_vit_msn.ViTMSNModel": ("ViTMSNModel", "ViTMSNForImageClassification")
    }
    readers: ClassVar = frozenset()
    block_types: ClassVar[tuple[str, ...]] = (HF + "vit_msn.modeling_vit_msn.ViTMSNLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "vit_msn.modeling_vit_msn.ViTMSNAttention",)


@register_family
class HFIJepa(HFViT):
    """transformers' I-JEPA: no token but patches."""

    models: ClassVar = {
        "ijepa.modeling_ijepa.IJepaModel": ("IJepaModel", "IJepaForImageClassification")
    }
    readers: ClassVar = frozenset()
    block_types: ClassVar[tuple[str, ...]] = (HF + "ijepa.modeling_ijepa.IJepaLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "ijepa.modeling_ijepa.IJepaAttention",)
    prefix: Any = 0


@register_family
class HFPixio(HFViT):
    """transformers' Pixio, which has several class tokens."""

    models: ClassVar = {"pixio.modeling_pixio.PixioModel": ("PixioModel", "PixioBackbone")}
    readers: ClassVar = frozenset({"PixioBackbone"})
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "attention_mask")
    block_types: ClassVar[tuple[str, ...]] = (HF + "pixio.modeling_pixio.PixioLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + "pixio.modeling_pixio.PixioAttention",)

    @property
    def prefix(self) -> int:
        return int(self.trunk.embeddings.n_cls_tokens)

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        bias = self.bias(block.attention, x, attend)
        out = attend(block.attention, block.layernorm_before(x), attention_mask=bias)
        return block.drop_path(block.dropout(out)) + x

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return block.drop_path(block.dropout(block.mlp(block.layernorm_after(x)))) + x
