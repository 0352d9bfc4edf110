"""transformers' Qwen2-VL, Qwen2.5-VL and Qwen3-VL, whose positions have three axes."""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.families.base import Types
from vitfold.folding.families.hf import HF
from vitfold.folding.families.hf_qwen import MOE, QWEN2, QWEN3, QWEN25
from vitfold.folding.hosts.base import Arguments, Host
from vitfold.folding.hosts.cut import Cut
from vitfold.folding.hosts.registry import register_host
from vitfold.folding.run import Run

VIDEO = "give videos to a model that is folded with out='restored'"


@register_host
class HFQwen(Host):
    """transformers' Qwen2-VL and Qwen3-VL. The merger is the last part of the tower and sees all
    squares; the language model, those that stay, at the places that they have in their image."""

    models: ClassVar[Types] = (
        HF + QWEN2 + "Qwen2VLModel",
        HF + QWEN3 + "Model",
        HF + MOE + "Model",
    )
    heads: ClassVar[Types] = (
        HF + QWEN2 + "Qwen2VLForConditionalGeneration",
        HF + QWEN3 + "ForConditionalGeneration",
        HF + MOE + "ForConditionalGeneration",
    )
    refused: ClassVar = {"pixel_values_videos": VIDEO}

    @property
    def side(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    def overrides(self, cut: Cut) -> dict[str, Any]:
        return {}

    def positions(self, arguments: Arguments) -> Tensor | None:
        """Where the model can tell them: it takes a prompt for words else."""
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        parts = {name: arguments.get(name) for name in names}
        if any(parts[name] is None for name in names[:3]):
            return None
        positions: Tensor = self.model.get_rope_index(**parts)[0]
        return positions

    def remember(self, positions: Tensor, length: Tensor) -> None:
        last = positions.amax(dim=(0, 2)).to(length.device)
        self.model.rope_deltas = (last + 1 - length).unsqueeze(1)


@register_host
class HFQwenWindowed(HFQwen):
    """transformers' Qwen2.5-VL, whose tower takes squares in the order of its windows."""

    models: ClassVar[Types] = (HF + QWEN25 + "VLModel",)
    heads: ClassVar[Types] = (HF + QWEN25 + "VLForConditionalGeneration",)

    def stays(self, runs: Sequence[Run], arguments: Arguments) -> list[Tensor]:
        images = super().stays(runs, arguments)
        library = importlib.import_module("transformers.vision_utils")
        tower = self.model.visual
        order, _ = library.get_vision_window_index(
            arguments["image_grid_thw"],
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        squares: list[Tensor] = []
        start = 0
        for own in images:
            back = (order[start : start + len(own)] - start).argsort().to(own.device)
            squares.append(own[back])
            start += len(own)
        return squares
