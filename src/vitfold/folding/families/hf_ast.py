"""Hugging Face's Audio Spectrogram Transformer: a ViT whose images are spectrograms."""

from typing import Any, ClassVar

from vitfold.folding.families.common import Arguments, Grid, Size, blank_images
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_vit import HFViT
from vitfold.folding.families.registry import register_family

AST = "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.AST"


@register_family
class HFAST(HFViT):
    """transformers' AST: patches of frequency and time, which may overlap."""

    models: ClassVar = {AST + "Model": ("ASTModel", "ASTForAudioClassification")}
    readers: ClassVar = frozenset()
    arguments: ClassVar[tuple[str, ...]] = ("input_values", "attention_mask")
    block_types: ClassVar[tuple[str, ...]] = (HF + AST + "Layer",)
    attention_types: ClassVar[tuple[str, ...]] = (HF + AST + "Attention",)
    prefix: Any = 2

    @property
    def size(self) -> Size:
        """One channel, frequencies and moments."""
        return 1, int(self.config.num_mel_bins), int(self.config.max_length)

    def grid(self, arguments: Arguments) -> Grid:
        """Rows of frequency, columns of time."""
        spectrograms = arguments.get("input_values")
        if spectrograms is None:
            return None
        config, (moments, frequencies) = self.config, spectrograms.shape[-2:]
        return (
            (frequencies - config.patch_size) // config.frequency_stride + 1,
            (moments - config.patch_size) // config.time_stride + 1,
        )

    def example(self, batch: int = 1) -> dict[str, Any]:
        _, frequencies, moments = self.size
        return {"input_values": blank_images(self.trunk, (moments, frequencies), batch)}
