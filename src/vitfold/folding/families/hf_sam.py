"""Hugging Face's SAM and SAM-HQ, and the encoders of the same layers in models that read text off
pictures."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.proxy import Proxy
from vitfold.folding.families.common import Chain, check_depth
from vitfold.folding.families.hf import HF, HFFamily
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.windowed import RelativeWindowed
from vitfold.folding.run import Run

SAM = "sam.modeling_sam.Sam"
HQ = "sam_hq.modeling_sam_hq.SamHQ"
GOT = "got_ocr2.modeling_got_ocr2.GotOcr2"
SLANEXT = "slanext.modeling_slanext.SLANeXt"
FORMULA = "pp_formulanet.modeling_pp_formulanet.PPFormulaNet"
DEEPSEEK = "deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2Sam"
UNLIMITED = "unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrSam"

PLACES = (SAM, HQ, GOT, SLANEXT, FORMULA, DEEPSEEK, UNLIMITED)


@register_family
class HFSam(RelativeWindowed, HFFamily):
    """transformers' SAM: the encoder of images folds; prompts and masks read its dense map."""

    models: ClassVar = {
        SAM + "VisionEncoder": ("SamVisionModel", "SamModel"),
        GOT + "VisionEncoder": ("GotOcr2Model", "GotOcr2ForConditionalGeneration"),
        SLANEXT + "VisionEncoder": ("SLANeXtForTableRecognition",),
        FORMULA + "VisionModel": (
            "PPFormulaNetVisionModel",
            "PPFormulaNetModel",
            "PPFormulaNetForConditionalGeneration",
        ),
        DEEPSEEK + "VisionEncoder": (
            "DeepseekOcr2VisionModel",
            "DeepseekOcr2Model",
            "DeepseekOcr2ForConditionalGeneration",
        ),
        UNLIMITED + "VisionEncoder": (
            "UnlimitedOcrVisionModel",
            "UnlimitedOcrModel",
            "UnlimitedOcrForConditionalGeneration",
        ),
    }
    hands_down: ClassVar = False
    path: ClassVar = "layers"
    block_arguments: ClassVar[tuple[str, ...]] = ()
    block_types: ClassVar[tuple[str, ...]] = tuple(HF + place + "VisionLayer" for place in PLACES)
    attention: ClassVar = "attn"
    attention_types: ClassVar[tuple[str, ...]] = tuple(
        HF + place + f"Vision{kind}Attention" for place in PLACES for kind in ("", "Sdpa")
    )

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        return x + self.attended(block, block.attn, block.layer_norm1(x), attend)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))


@register_family
class HFSamHQ(HFSam):
    """transformers' SAM-HQ, which also reads what leaves the blocks that attend to the whole
    map."""

    models: ClassVar = {HQ + "VisionEncoder": ("SamHQVisionModel", "SamHQModel")}

    def chain(self, run: Run) -> Chain:
        """Blocks of which their windows can be told."""
        check_depth(self.trunk, self.trunk.layers, run)
        return Chain([_Link(block, run=run) for block in self.trunk.layers], self.trunk.layers)


class _Link(Proxy):
    """A block bound to a run, that says what the block says."""

    def __call__(self, x: Tensor) -> Any:
        return self._module(x, vitfold=self.run)
