"""Hugging Face's ViT-MAE: an encoder that sees some of the patches, in random order."""

from typing import Any, ClassVar

from vitfold.folding.families.common import Arguments, Grid
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_vit import HFViT
from vitfold.folding.families.registry import register_family
from vitfold.tokens.layout import Layout

MAE = "vit_mae.modeling_vit_mae.ViTMAE"


@register_family
class HFMAE(HFViT):
    """The encoder of transformers' ViT-MAE. It shuffles the patches even where it keeps them all
    (`mask_ratio=0`), so they lie on no grid."""

    models: ClassVar = {MAE + "Model": ("ViTMAEModel", "ViTMAEForPreTraining")}
    readers: ClassVar = frozenset({"ViTMAEForPreTraining"})
    arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "noise",
        "interpolate_pos_encoding",
        "attention_mask",
    )
    block_types: ClassVar[tuple[str, ...]] = (HF + MAE + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + MAE + "Attention",)

    def grid(self, arguments: Arguments) -> Grid:
        return None

    def layout_of(self, grid: Grid) -> Layout:
        """So many patches stay of an image of the size that the model takes."""
        patches: Any = self.trunk.embeddings.patch_embeddings.num_patches
        kept = int(patches * (1 - self.config.mask_ratio))
        reads_patches = self.hosted or self.reads_patches
        return Layout(self.prefix + kept, self.prefix, None, self.depth, True, reads_patches)
