"""Hugging Face's YOLOS, DPT and ViTPose: blocks in parts, whose attention takes no bias."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.errors import ShapeError
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.proxy import Whole, whole
from vitfold.folding.families.biasless import InParts
from vitfold.folding.families.hf import HF
from vitfold.folding.families.registry import register_family
from vitfold.folding.run import Run

YOLOS = "yolos.modeling_yolos.Yolos"
DPT = "dpt.modeling_dpt.DPT"
VITPOSE = "vitpose_backbone.modeling_vitpose_backbone.VitPoseBackbone"


@register_family
class HFYolos(InParts):
    """transformers' YOLOS: a class token, patches, and behind them the tokens that detect."""

    models: ClassVar = {YOLOS + "Model": ("YolosModel", "YolosForObjectDetection")}
    hands_down: ClassVar = False
    block_types: ClassVar[tuple[str, ...]] = (HF + YOLOS + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + YOLOS + "SelfAttention",)
    class_token: Any = False
    reads_patches: Any = False

    @property
    def suffix(self) -> int:
        return int(self.config.num_detection_tokens)

    @property
    def prefix(self) -> int:
        return 1 + self.suffix

    def proxy(self, run: Run, **overrides: Any) -> Whole:
        """Some add positions between their blocks, too."""
        if self.config.use_mid_position_embeddings:
            encoder = whole(
                self.trunk.encoder,
                layer=self.chain(run),
                interpolation=lambda size: _Between(
                    self.trunk.encoder.interpolation(size), run, self.suffix
                ),
            )
            overrides = {"encoder": encoder} | overrides
        return super().proxy(run, **overrides)


class _Between:
    """Positions that are added behind every block but the last, for its tokens: a merged one keeps
    that of the one it went into."""

    def __init__(self, tables: Tensor, run: Run, suffix: int) -> None:
        self.tables, self.run, self.suffix = tables, run, suffix

    def __getitem__(self, index: int) -> Tensor:
        table: Tensor = self.tables[index]
        state = self.run.states[index + 1]
        if self.run.shows(index) or state.shape == (state.batch, state.tokens):
            return table
        rows = table.roll(self.suffix, dims=1).expand(state.batch, -1, -1)
        return state.fold(rows).roll(-self.suffix, dims=1)


@register_family
class HFDPT(InParts):
    """transformers' DPT, with embeddings of its own or from convolutions."""

    models: ClassVar = {
        DPT + "Model": ("DPTModel", "DPTForDepthEstimation", "DPTForSemanticSegmentation")
    }
    readers: ClassVar = frozenset({"DPTForDepthEstimation", "DPTForSemanticSegmentation"})
    hands_down: ClassVar = False
    block_types: ClassVar[tuple[str, ...]] = (HF + DPT + "ViTLayer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + DPT + "SelfAttention",)


@register_family
class HFVitPose(InParts):
    """transformers' ViTPose as a backbone, with one MLP or with experts for data sets."""

    models: ClassVar = {VITPOSE: ("VitPoseBackbone", "VitPoseForPoseEstimation")}
    readers: ClassVar = frozenset({"VitPoseForPoseEstimation"})
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "dataset_index")
    block_arguments: ClassVar[tuple[str, ...]] = ("dataset_index",)
    feed_arguments: ClassVar[tuple[str, ...]] = ("dataset_index",)
    block_types: ClassVar[tuple[str, ...]] = (HF + VITPOSE + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + VITPOSE + "SelfAttention",)
    prefix: Any = 0

    def feed(self, block: Block, x: Tensor, dataset_index: Tensor | None = None) -> Tensor:
        normed = block.layernorm_after(x)
        if block.num_experts == 1:
            return block.mlp(normed) + x
        if dataset_index is None or dataset_index.numel() not in (1, x.shape[0]):
            images = 0 if dataset_index is None else dataset_index.numel()
            raise ShapeError(
                f"dataset_index names experts for {images} images, and tokens lie in {x.shape[0]} "
                "rows: give one for every image, and fold by a method that keeps as many tokens "
                "of each, as ToMe does"
            )
        return block.mlp(normed, indices=dataset_index) + x
