"""Hugging Face's video models at a size that runs in no time, and clips for them."""

from typing import Any

import torch
from torch import Tensor

from support.models import scatter
from vitfold.folding.families import find

COMMON = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16}

CONFIGS: dict[str, dict[str, Any]] = {
    "VideoMAEConfig": COMMON
    | {
        "num_hidden_layers": 3,
        "patch_size": 4,
        "num_frames": 6,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    },
    "VJEPA2Config": {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "mlp_ratio": 2.0,
        "crop_size": 16,
        "patch_size": 4,
        "frames_per_clip": 6,
        "pred_hidden_size": 48,
        "pred_num_attention_heads": 4,
        "pred_num_hidden_layers": 1,
        "pred_num_mask_tokens": 2,
        "num_pooler_layers": 1,
    },
    "VivitConfig": COMMON
    | {"num_hidden_layers": 3, "tubelet_size": [2, 4, 4], "num_frames": 6, "num_labels": 5},
    "VideoPrismVisionConfig": COMMON
    | {
        "num_spatial_layers": 3,
        "num_temporal_layers": 1,
        "tubelet_size": [1, 4, 4],
        "num_frames": 3,
    },
}
"""Three tubelets in time, four in height and width."""

GRID = (3, 4, 4)

CONFIGS["VideoPrismConfig"] = {
    "vision_config": CONFIGS["VideoPrismVisionConfig"] | {"num_auxiliary_layers": 1},
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 50,
        "max_position_embeddings": 8,
    },
}

KINDS = ("VideoMAE", "VJEPA2", "Vivit", "VideoPrism")

TRUNKS = ("VideoMAEModel", "VJEPA2Model", "VivitModel", "VideoPrismVisionModel")

NAMES = (
    *TRUNKS,
    "VideoMAEForVideoClassification",
    "VJEPA2ForVideoClassification",
    "VivitForVideoClassification",
    "VideoPrismVideoModel",
    "VideoPrismForVideoClassification",
    "VideoPrismClipModel",
    "VideoMAEForPreTraining",
)


def video(name: str, **options: Any) -> Any:
    """A small model of a class of transformers, with weights that matter."""
    import transformers

    cls = getattr(transformers, name)
    config = cls.config_class
    return scatter(cls(config(**(CONFIGS[config.__name__] | options))))


def inputs(model: Any, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """What a model is called with: clips of noise, and text or a mask where it takes one."""
    [(name, blank)] = find(model).example(batch).items()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(blank.shape, generator=generator, dtype=torch.float64)
    arguments = {name: noise.to(blank.dtype)}
    if hasattr(model, "text_model"):
        arguments["input_ids"] = torch.tensor([[1, 5, 7, 2]] * batch)
    if hasattr(model, "decoder"):
        arguments["bool_masked_pos"] = torch.arange(48).expand(batch, -1) % 3 == 0
    return arguments
