"""Small windowed encoders, alone and in what holds them, and what they are called with."""

import importlib
from typing import Any

import timm
import torch
from torch import Tensor

from support.models import scatter
from vitfold.folding.families import find

HF = "transformers.models."

GLOBAL = [1, 3]

SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}

SAM = SIZE | {
    "image_size": 40,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": GLOBAL,
    "output_channels": 32,
    "mlp_dim": 64,
    "num_pos_feats": 16,
}
"""Ten by ten patches, in windows of four by four, of which those at the edges are padded."""

OCR = SAM | {"downsample_channels": [8, 8]}

FORMULA = SAM | {
    "post_conv_in_channels": 32,
    "post_conv_mid_channels": 8,
    "post_conv_out_channels": 8,
    "decoder_hidden_size": 8,
}

VITDET = SIZE | {
    "image_size": 40,
    "patch_size": 4,
    "window_size": 4,
    "window_block_indices": [0, 2],
    "residual_block_indices": [1, 2],
    "use_relative_position_embeddings": True,
    "mlp_ratio": 2,
    "drop_path_rate": 0.1,
}

MASKS = {
    "prompt_encoder_config": {
        "hidden_size": 32,
        "image_size": 40,
        "patch_size": 4,
        "mask_input_channels": 4,
    },
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    },
}

RF = SIZE | {
    "image_size": 32,
    "patch_size": 4,
    "num_windows": 2,
    "window_block_indexes": [0, 2],
    "out_indices": [2, 4],
    "reshape_hidden_states": True,
}

LW = SIZE | {
    "image_size": 32,
    "pretrain_image_size": 32,
    "patch_size": 4,
    "num_windows": 4,
    "window_block_indices": [0, 2],
    "out_indices": [2, 4],
}

DETR = {
    "d_model": 32,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_n_points": 2,
    "num_queries": 4,
    "group_detr": 1,
    "num_labels": 3,
}

SAM3 = SIZE | {
    "intermediate_size": 64,
    "image_size": 32,
    "pretrain_image_size": 16,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": GLOBAL,
}

VISION3 = {
    "backbone_config": SAM3 | {"model_type": "sam3_vit_model"},
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}

MATTE = VITDET | {"model_type": "vitdet", "image_size": 160, "patch_size": 16, "num_channels": 4}

TRUNKS: dict[str, dict[str, Any]] = {
    "SamVisionModel": SAM,
    "SamHQVisionModel": SAM,
    "PPFormulaNetVisionModel": FORMULA,
    "VitDetModel": VITDET,
    "VitDetBackbone": VITDET | {"out_indices": [1, 2, 4]},
    "Sam3ViTModel": SAM3,
    "Sam3VisionModel": VISION3,
    "RfDetrDinov2Backbone": RF,
    "LwDetrViTBackbone": LW,
    "got_ocr2.modeling_got_ocr2.GotOcr2VisionEncoder": SAM,
    "slanext.modeling_slanext.SLANeXtVisionEncoder": SAM,
    "deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2SamVisionEncoder": OCR,
    "unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrSamVisionEncoder": OCR,
}

HOLDERS: dict[str, dict[str, Any]] = {
    "SamModel": {"vision_config": SAM} | MASKS,
    "SamHQModel": {"vision_config": SAM}
    | MASKS
    | {"mask_decoder_config": MASKS["mask_decoder_config"] | {"vit_dim": 32}},
    "VitMatteForImageMatting": {
        "backbone_config": MATTE | {"out_indices": [4]},
        "hidden_size": 32,
        "convstream_hidden_sizes": [8, 8, 8],
        "fusion_hidden_sizes": [8, 8, 8, 8],
    },
    **dict.fromkeys(
        ("RfDetrModel", "RfDetrForObjectDetection", "RfDetrForInstanceSegmentation"),
        DETR | {"backbone_config": RF | {"model_type": "rf_detr_dinov2"}},
    ),
    **dict.fromkeys(
        ("LwDetrModel", "LwDetrForObjectDetection"),
        DETR
        | {"backbone_config": LW | {"model_type": "lw_detr_vit"}, "projector_scale_factors": [1.0]},
    ),
}
"""Models that read images alone, and hold one."""


def windowed(name: str) -> Any:
    """A small model of a class of transformers, with weights that matter; or timm's."""
    if name == "samvit":
        return scatter(samvit())
    import transformers

    options = (TRUNKS | HOLDERS)[name]
    module, _, cls_name = name.rpartition(".")
    cls = getattr(importlib.import_module(HF + module) if module else transformers, cls_name)
    return scatter(cls(cls.config_class(**options))).eval()


def samvit(**options: Any) -> Any:
    """timm's, with a neck and a head."""
    sizes = {"img_size": 40, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
    windows = {"window_size": 4, "global_attn_indexes": GLOBAL, "neck_chans": 16}
    return timm.create_model("samvit_base_patch16_224", **(sizes | windows | options)).eval()


def arguments_of(model: Any, batch: int = 2) -> dict[str, Tensor]:
    """Random images, and a point where masks are asked for."""
    generator = torch.Generator().manual_seed(1)
    arguments = {
        key: torch.randn(value.shape, generator=generator)
        for key, value in find(model).example(batch).items()
    }
    if type(model).__name__ in ("SamModel", "SamHQModel"):
        arguments["input_points"] = torch.full((batch, 1, 1, 2), 17.0)
    return arguments
