"""Small configurations of transformers' classes that hold a vision trunk of another package."""

from typing import Any

import torch

from support.hf_models import IMAGE, LLAMA, QWEN, TEXT, VISION, Options
from support.models import scatter
from vitfold.folding.families import find

CLIP = VISION | {"model_type": "clip_vision_model"}

SIGLIP = VISION | {"model_type": "siglip_vision_model"}

PIXTRAL = VISION | {"model_type": "pixtral"}

DINO = VISION | {
    "num_hidden_layers": 4,
    "reshape_hidden_states": False,
    "out_indices": [1, 2, 3, 4],
    "apply_layernorm": True,
}

NECK = {
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "head_hidden_size": 8,
    "reassemble_hidden_size": 32,
    "patch_size": 4,
}

GEMMA = LLAMA | {"model_type": "gemma", "head_dim": 8}

GEMMA3 = LLAMA | {"model_type": "gemma3_text", "head_dim": 8}

COHERE = LLAMA | {"model_type": "cohere2"}

TOKEN = {"image_token_id": IMAGE}

TILES = {"image_grid_pinpoints": [[16, 16]], "text_config": QWEN}

LLAVA = {"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE}

PALI = {"vision_config": SIGLIP | {"projection_dim": 32}, "text_config": GEMMA} | TOKEN

GEMMAS = {"vision_config": SIGLIP, "text_config": GEMMA3, "mm_tokens_per_image": 4} | TOKEN

MISTRAL = {"vision_config": PIXTRAL, "text_config": LLAMA | {"model_type": "mistral"}} | TOKEN

ARIA = {
    "vision_config": VISION | {"model_type": "idefics3_vision"},
    "text_config": LLAMA | {"model_type": "aria_text", "moe_num_experts": 2},
    "projector_patch_to_query_dict": {16: 4},
    "image_token_index": IMAGE,
}

ZOE = {
    "backbone_config": VISION
    | {
        "model_type": "beit",
        "num_hidden_layers": 4,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
        "use_relative_position_bias": True,
    },
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "bottleneck_features": 8,
    "num_relative_features": 8,
    "bin_embedding_dim": 8,
    "num_attractors": [2, 2, 2, 2],
    "bin_configurations": [{"n_bins": 4, "min_depth": 0.1, "max_depth": 1.0}],
}

WRAPPED = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_core_tiny_patch16_384",
    "model_args": {"embed_dim": 32, "num_heads": 4, "depth": 3, "img_size": 64, "global_pool": ""},
}

HOSTS: dict[str, Options] = {
    "AriaModel": ARIA,
    "AriaForConditionalGeneration": ARIA,
    **dict.fromkeys(
        ("AyaVisionModel", "AyaVisionForConditionalGeneration"),
        {"vision_config": SIGLIP, "text_config": COHERE} | TOKEN,
    ),
    "CHMv2ForDepthEstimation": {
        "backbone_config": DINO
        | {"model_type": "dinov3_vit", "return_class_token": True, "reshape_hidden_states": True},
        "patch_size": 4,
        "reassemble_factors": [4, 2, 1, 0.5],
        "post_process_channels": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 8,
        "number_output_channels": 8,
    },
    **dict.fromkeys(
        ("Cohere2VisionModel", "Cohere2VisionForConditionalGeneration"),
        {"vision_config": SIGLIP, "text_config": COHERE} | TOKEN,
    ),
    "ColPaliForRetrieval": {"vlm_config": PALI | {"model_type": "paligemma"}, "embedding_dim": 8},
    **dict.fromkeys(
        ("DeepseekVLModel", "DeepseekVLForConditionalGeneration"),
        {"vision_config": SIGLIP, "text_config": LLAMA} | TOKEN,
    ),
    "DepthAnythingForDepthEstimation": NECK | {"backbone_config": DINO | {"model_type": "dinov2"}},
    "Gemma3Model": GEMMAS,
    "Gemma3ForConditionalGeneration": GEMMAS,
    "ShieldGemma2ForImageClassification": GEMMAS,
    **dict.fromkeys(
        ("Lfm2VlModel", "Lfm2VlForConditionalGeneration"),
        {
            "vision_config": {k: v for k, v in VISION.items() if k != "image_size"}
            | {"model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False},
            "text_config": LLAMA | {"model_type": "lfm2"},
        }
        | TOKEN,
    ),
    **dict.fromkeys(
        ("LightOnOcrModel", "LightOnOcrForConditionalGeneration"),
        {"vision_config": PIXTRAL, "text_config": QWEN | {"model_type": "qwen3", "head_dim": 8}}
        | TOKEN,
    ),
    **dict.fromkeys(("LlavaModel", "LlavaForConditionalGeneration"), LLAVA),
    **dict.fromkeys(("LlavaNextModel", "LlavaNextForConditionalGeneration"), LLAVA | TILES),
    **dict.fromkeys(
        ("LlavaNextVideoModel", "LlavaNextVideoForConditionalGeneration"), LLAVA | TILES
    ),
    **dict.fromkeys(
        ("LlavaOnevisionModel", "LlavaOnevisionForConditionalGeneration"),
        TILES | {"vision_config": SIGLIP},
    ),
    **dict.fromkeys(("Mistral3Model", "Mistral3ForConditionalGeneration"), MISTRAL),
    "ModernVBertModel": {
        "vision_config": SIGLIP,
        "text_config": TEXT | {"model_type": "modernbert"},
        "pixel_shuffle_factor": 2,
    }
    | TOKEN,
    **dict.fromkeys(("PaliGemmaModel", "PaliGemmaForConditionalGeneration"), PALI),
    "PromptDepthAnythingForDepthEstimation": NECK
    | {"backbone_config": DINO | {"model_type": "dinov2"}},
    "VipLlavaModel": LLAVA | {"vision_feature_layers": [-1, -2]},
    "VipLlavaForConditionalGeneration": LLAVA | {"vision_feature_layers": [-1, -2]},
    "VisionEncoderDecoderModel": {
        "encoder": VISION | {"model_type": "vit"},
        "decoder": {
            "model_type": "trocr",
            "vocab_size": 60,
            "d_model": 32,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 32,
            "cross_attention_hidden_size": 32,
        },
    },
    "VisionTextDualEncoderModel": {
        "vision_config": VISION | {"model_type": "vit"},
        "text_config": TEXT | {"model_type": "bert"},
    },
    "ZoeDepthForDepthEstimation": ZOE,
}
"""What makes a small model of each."""

WORDS = torch.tensor([[1, 5, 7], [1, 6, 8]])

SIZES = {"image_sizes": [(16, 16)] * 2}

MORE: dict[str, dict[str, Any]] = {
    "VisionEncoderDecoderModel": {"decoder_input_ids": WORDS},
    "VisionTextDualEncoderModel": {"input_ids": WORDS},
    "PromptDepthAnythingForDepthEstimation": {"prompt_depth": torch.rand(2, 1, 4, 4)},
    **dict.fromkeys(("Mistral3Model", "LightOnOcrModel"), SIZES),
    **dict.fromkeys(
        ("Mistral3ForConditionalGeneration", "LightOnOcrForConditionalGeneration"), SIZES
    ),
}
"""What some are called with besides images."""

TILED = ("LlavaNext", "LlavaOnevision")
"""Beginnings of the names of those that take an image in tiles, the whole of it first."""


ALONE = (
    "ColPaliForRetrieval",
    "DeepseekVLForConditionalGeneration",
    "ShieldGemma2ForImageClassification",
)
"""Those that do not run without words: their trunk runs alone."""


def host(name: str) -> Any:
    """A small model of a class of transformers that holds a trunk of another package."""
    import transformers

    cls = getattr(transformers, name)
    return scatter(cls(cls.config_class(**HOSTS[name])))


def seen(model: Any) -> Any:
    """What a model makes of random images: their features where a language model follows."""
    name = type(model).__name__
    generator = torch.Generator().manual_seed(1)
    arguments: dict[str, Any] = dict(find(model).example(2))
    arguments["pixel_values"] = torch.randn(arguments["pixel_values"].shape, generator=generator)
    arguments |= MORE.get(name, {})
    if name.startswith(TILED):
        arguments["pixel_values"] = arguments["pixel_values"].unsqueeze(1).repeat(1, 2, 1, 1, 1)
        arguments["image_sizes"] = torch.tensor([[16, 16]] * 2)
    if name == "ModernVBertModel":
        arguments["pixel_values"] = arguments["pixel_values"].unsqueeze(1)
    features = getattr(model, "get_image_features", None)
    if "input_ids" in arguments or features is None:
        return (find(model).trunk if name in ALONE else model)(**arguments)
    return features(**arguments)
