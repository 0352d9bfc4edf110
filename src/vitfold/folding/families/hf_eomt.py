"""Hugging Face's EoMT: blocks over an image, and behind them blocks that see queries too."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from vitfold.folding.families.common import Chain, check_depth, links
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_dinov2 import HFDinov2
from vitfold.folding.families.hf_dinov3 import HFDinov3
from vitfold.folding.families.registry import register_family
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState

EOMT = "eomt.modeling_eomt.Eomt"
EOMT3 = "eomt_dinov3.modeling_eomt_dinov3.EomtDinov3"


class Encoder(HFDinov2):
    """Base of EoMT, of which the blocks are folded that come before its queries: those behind
    them draw masks for patches one by one."""

    path: ClassVar = "layers"
    hands_down: ClassVar = False
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)
    reads_patches: Any = True

    def find_blocks(self) -> Sequence[nn.Module]:
        return super().find_blocks()[: -self.config.num_blocks]

    def chain(self, run: Run) -> Chain:
        container, blocks = self.trunk.layers, self.find_blocks()
        check_depth(self.trunk, blocks, run)
        return Chain([*links(blocks, run), *list(container)[len(blocks) :]], container)

    def read_again(self, outputs: Any, state: TokenState) -> Any:
        """Nothing: what it reads is made by the blocks that are not folded."""
        return outputs


@register_family
class HFEomt(Encoder):
    """transformers' EoMT on DINOv2."""

    models: ClassVar = {EOMT + "ForUniversalSegmentation": ("EomtForUniversalSegmentation",)}
    readers: ClassVar = frozenset(*models.values())
    block_types: ClassVar[tuple[str, ...]] = (HF + EOMT + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + EOMT + "Attention",)


@register_family
class HFEomtDinov3(Encoder, HFDinov3):
    """transformers' EoMT on DINOv3."""

    models: ClassVar = {EOMT3 + "ForUniversalSegmentation": ("EomtDinov3ForUniversalSegmentation",)}
    readers: ClassVar = frozenset(*models.values())
    path: ClassVar = "layers"
    block_types: ClassVar[tuple[str, ...]] = (HF + EOMT3 + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + EOMT3 + "Attention",)
    block_arguments: ClassVar[tuple[str, ...]] = HFDinov3.block_arguments
