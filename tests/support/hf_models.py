"""Small configurations of transformers' vision models, alone and in what holds them, and what they
are called with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.models import scatter
from vitfold.folding.families import find
from vitfold.folding.families.hf import MODELS

Options = dict[str, Any]

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}

VISION = SIZE | {"intermediate_size": 48, "patch_size": 4, "image_size": 16}
"""Four by four patches."""

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LLAMA = TEXT | {"model_type": "llama", "num_key_value_heads": 2}

OPT = TEXT | {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 32}

IMAGE = 50
"""The token that stands for a patch in what a language model reads."""

BOTH: Options = {"vision_config": VISION, "text_config": TEXT}

QFORMER = TEXT | {"encoder_hidden_size": 32}

QUERIES = {
    "vision_config": VISION,
    "qformer_config": QFORMER,
    "text_config": OPT,
    "num_query_tokens": 3,
    "image_token_index": IMAGE,
}

NECK = {
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "reassemble_factors": [4, 2, 1, 0.5],
}

DPT = VISION | NECK | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]}

BACKBONE = VISION | {"model_type": "dinov2", "num_hidden_layers": 4, "reshape_hidden_states": False}

DINO4 = BACKBONE | {"out_indices": [1, 2, 3, 4], "apply_layernorm": True}

HEAD = {"upsample_out_channels": [8], "conv_out_channels": [8]}

EOMT = VISION | {"num_blocks": 1, "num_queries": 3, "num_upscale_blocks": 1}

YOLOS = VISION | {"image_size": [16, 16], "num_detection_tokens": 3}

POSE = VISION | {"image_size": [32, 24], "patch_size": [8, 8]}

JANUS = {
    "vision_config": SIZE | {"patch_size": 4, "image_size": 16, "projection_dim": 32},
    "text_config": LLAMA,
    "vq_config": {
        "base_channels": 32,
        "latent_channels": 32,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "num_embeddings": 8,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
        "num_patches": 4,
    },
    "image_token_id": IMAGE,
}

IDEFICS = {
    "vision_config": VISION,
    "text_config": LLAMA,
    "image_token_id": IMAGE,
    "scale_factor": 2,
}

SPECTROGRAM = SIZE | {
    "intermediate_size": 48,
    "patch_size": 4,
    "num_mel_bins": 12,
    "max_length": 18,
    "frequency_stride": 4,
    "time_stride": 3,
}

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

QWEN = LLAMA | {"model_type": "qwen2"}

RENDERED = SIZE | {"patch_embed_hidden_size": 12}

INTERN = {
    "vision_config": VISION | {"image_size": [16, 16], "patch_size": [4, 4]},
    "image_token_id": IMAGE,
    "image_seq_length": 4,
}

KOSMOS_TEXT = {
    "vocab_size": 60,
    "embed_dim": 32,
    "layers": 1,
    "ffn_dim": 32,
    "attention_heads": 4,
    "max_position_embeddings": 64,
}

FLAVA = {
    "image_config": VISION,
    "text_config": TEXT,
    "multimodal_config": {k: v for k, v in TEXT.items() if "token" not in k},
    "image_codebook_config": {"hidden_size": 4, "vocab_size": 8, "num_blocks_per_group": 1},
    "hidden_size": 32,
    "projection_dim": 8,
}

KOSMOS2 = {
    "vision_config": VISION,
    "text_config": KOSMOS_TEXT,
    "latent_query_num": 3,
}

IDEFICS2 = {
    "vision_config": VISION,
    "text_config": LLAMA | {"model_type": "mistral"},
    "perceiver_config": {
        "hidden_size": 32,
        "resampler_n_latents": 3,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 1,
    },
    "image_token_id": IMAGE,
}

PADDLE = {
    "vision_config": VISION | {"spatial_merge_size": 2},
    "text_config": TEXT | {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": ROPE},
    "image_token_id": IMAGE,
}

VIDEO_LLAMA = {"vision_config": VISION, "text_config": QWEN, "image_token_id": IMAGE}

KOSMOS25 = {
    "vision_config": RENDERED | {"intermediate_size": 32, "head_dim": 8},
    "text_config": KOSMOS_TEXT,
    "latent_query_num": 3,
}

OVIS2 = {
    "vision_config": VISION | {"vocab_size": 12},
    "text_config": QWEN,
    "image_token_id": IMAGE,
    "visual_indicator_token_ids": [51, 52, 53, 54, 55],
    "vocab_size": 60,
    "hidden_size": 32,
}

IDEFICS1 = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vision_config": {k: v for k, v in VISION.items() if k != "hidden_size"} | {"embed_dim": 32},
}

SMALL: dict[str, Options] = {
    **dict.fromkeys(("ViTMSNModel", "ViTMSNForImageClassification"), VISION),
    **dict.fromkeys(("IJepaModel", "IJepaForImageClassification"), VISION),
    **dict.fromkeys(("PixioModel", "PixioBackbone"), VISION),
    **dict.fromkeys(("ASTModel", "ASTForAudioClassification"), SPECTROGRAM),
    "ViTMAEModel": VISION | {"mask_ratio": 0.3},
    "ViTMAEForPreTraining": VISION
    | {
        "mask_ratio": 0.3,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    },
    "BlipVisionModel": VISION,
    **dict.fromkeys(
        (
            "BlipModel",
            "BlipForConditionalGeneration",
            "BlipForImageTextRetrieval",
            "BlipForQuestionAnswering",
        ),
        BOTH | {"text_config": TEXT | {"encoder_hidden_size": 32, "projection_dim": 8}},
    ),
    **dict.fromkeys(("Blip2VisionModel", "InstructBlipVisionModel"), VISION),
    "InstructBlipVideoVisionModel": VISION,
    **dict.fromkeys(
        (
            "Blip2Model",
            "Blip2ForConditionalGeneration",
            "InstructBlipModel",
            "InstructBlipForConditionalGeneration",
        ),
        QUERIES,
    ),
    **dict.fromkeys(
        ("Blip2VisionModelWithProjection", "Blip2ForImageTextRetrieval"),
        QUERIES | {"qformer_config": QFORMER | {"use_qformer_text_input": True}},
    ),
    **dict.fromkeys(
        ("InstructBlipVideoModel", "InstructBlipVideoForConditionalGeneration"),
        {k: v for k, v in QUERIES.items() if k != "image_token_index"}
        | {"video_token_index": IMAGE},
    ),
    **dict.fromkeys(("Data2VecVisionModel", "Data2VecVisionForImageClassification"), VISION),
    "Data2VecVisionForSemanticSegmentation": VISION
    | {
        "num_hidden_layers": 4,
        "out_indices": [1, 2, 3, 4],
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": True,
        "auxiliary_channels": 8,
        "auxiliary_num_convs": 1,
    },
    **dict.fromkeys(("Tipsv2VisionModel", "Tipsv2VisionBackbone"), VISION),
    "Tipsv2Model": BOTH,
    "RadioModel": VISION | {"max_img_size": 32},
    **dict.fromkeys(("Sapiens2Model", "Sapiens2Backbone"), VISION),
    **dict.fromkeys(
        (
            "Sapiens2ForSemanticSegmentation",
            "Sapiens2ForPoseEstimation",
            "Sapiens2ForNormalEstimation",
            "Sapiens2ForPointmapEstimation",
            "Sapiens2ForImageMatting",
        ),
        VISION | {"head_config": HEAD},
    ),
    "EomtForUniversalSegmentation": EOMT,
    "EomtDinov3ForUniversalSegmentation": EOMT,
    "FlavaImageModel": VISION,
    **dict.fromkeys(("FlavaModel", "FlavaForPreTraining"), FLAVA),
    "InternVLVisionModel": VISION | {"use_qk_norm": True},
    **dict.fromkeys(
        ("InternVLModel", "InternVLForConditionalGeneration"),
        INTERN | {"text_config": LLAMA},
    ),
    **dict.fromkeys(("AltCLIPVisionModel", "CLIPSegVisionModel", "ChineseCLIPVisionModel"), VISION),
    **dict.fromkeys(("MetaClip2VisionModel", "OwlViTVisionModel", "Owlv2VisionModel"), VISION),
    "MetaClip2VisionModelWithProjection": VISION,
    "AltCLIPModel": BOTH | {"text_config": TEXT | {"project_dim": 16}},
    **dict.fromkeys(("ChineseCLIPModel", "CLIPSegModel", "MetaClip2Model"), BOTH),
    "MetaClip2ForImageClassification": BOTH,
    "CLIPSegForImageSegmentation": BOTH
    | {
        "vision_config": VISION | {"num_hidden_layers": 4},
        "projection_dim": 8,
        "reduce_dim": 8,
        "extract_layers": [0, 1, 2],
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 8,
    },
    **dict.fromkeys(("OwlViTModel", "OwlViTForObjectDetection"), BOTH | {"projection_dim": 32}),
    **dict.fromkeys(("Owlv2Model", "Owlv2ForObjectDetection"), BOTH | {"projection_dim": 32}),
    **dict.fromkeys(("Kosmos2Model", "Kosmos2ForConditionalGeneration"), KOSMOS2),
    "GitVisionModel": VISION,
    **dict.fromkeys(("GitModel", "GitForCausalLM"), TEXT | {"vision_config": VISION}),
    "JanusVisionModel": SIZE | {"patch_size": 4, "image_size": 16},
    **dict.fromkeys(("JanusModel", "JanusForConditionalGeneration"), JANUS),
    **dict.fromkeys(("Idefics2Model", "Idefics2ForConditionalGeneration"), IDEFICS2),
    **dict.fromkeys(("Idefics3VisionTransformer", "SmolVLMVisionTransformer"), VISION),
    **dict.fromkeys(("Idefics3Model", "Idefics3ForConditionalGeneration"), IDEFICS),
    **dict.fromkeys(("SmolVLMModel", "SmolVLMForConditionalGeneration"), IDEFICS),
    "Aimv2VisionModel": VISION,
    "Aimv2Model": BOTH,
    "MLCDVisionModel": VISION,
    "YolosModel": YOLOS,
    "YolosForObjectDetection": YOLOS | {"use_mid_position_embeddings": False},
    "DPTModel": DPT,
    "DPTForDepthEstimation": DPT,
    "DPTForSemanticSegmentation": DPT,
    "PixtralVisionModel": VISION,
    **dict.fromkeys(("PaddleOCRVLModel", "PaddleOCRVLForConditionalGeneration"), PADDLE),
    "VideoLlama3VisionModel": VISION,
    **dict.fromkeys(("VideoLlama3Model", "VideoLlama3ForConditionalGeneration"), VIDEO_LLAMA),
    **dict.fromkeys(("Kosmos2_5Model", "Kosmos2_5ForConditionalGeneration"), KOSMOS25),
    "Pix2StructVisionModel": RENDERED | {"d_ff": 32, "d_kv": 8},
    "Pix2StructForConditionalGeneration": {
        "vision_config": RENDERED | {"d_ff": 32, "d_kv": 8},
        "text_config": {
            "vocab_size": 60,
            "hidden_size": 32,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 1,
            "num_heads": 4,
        },
    },
    "QianfanOCRVisionModel": VISION,
    **dict.fromkeys(
        ("QianfanOCRModel", "QianfanOCRForConditionalGeneration"),
        INTERN | {"text_config": QWEN | {"model_type": "qwen3", "head_dim": 8}},
    ),
    **dict.fromkeys(("Ovis2Model", "Ovis2ForConditionalGeneration"), OVIS2),
    **dict.fromkeys(("IdeficsModel", "IdeficsForVisionText2Text"), IDEFICS1),
    **dict.fromkeys(
        ("MgpstrModel", "MgpstrForSceneTextRecognition"),
        SIZE
        | {
            "image_size": [12, 20],
            "patch_size": 4,
            "mlp_ratio": 1.0,
            "max_token_length": 4,
            "num_character_labels": 5,
            "num_bpe_labels": 6,
            "num_wordpiece_labels": 7,
        },
    ),
    "VitPoseBackbone": POSE | {"num_experts": 2, "part_features": 8},
    "VitPoseForPoseEstimation": {"backbone_config": POSE | {"model_type": "vitpose_backbone"}},
}
"""What makes a small model of a class that is a trunk of its own package, or holds one."""


DEEP = {
    place: names
    for place, names in MODELS.items()
    if place.split(".")[2]
    in (
        "beit",
        "clip",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "siglip",
        "siglip2",
        "vit",
    )
}
"""Trunks and classes of the packages that go through every test; others go through fewer."""

TRUNKS = [
    name
    for place, names in MODELS.items()
    for name in names
    if name in SMALL and place.endswith(f".{name}")
]
"""Those of the others that are trunks themselves, and have a name in transformers."""


def small(name: str, **options: Any) -> Any:
    """A small model of a class of transformers, with weights that matter."""
    import transformers

    cls = getattr(transformers, name)
    return scatter(cls(cls.config_class(**(SMALL[name] | options))))


def arguments_of(model: Any, batch: int = 2) -> dict[str, Tensor]:
    """What a small model is called with: random images, and whatever else it reads."""
    name = type(model).__name__
    generator = torch.Generator().manual_seed(1)
    arguments = {
        key: _random(value, generator) if value.is_floating_point() else value
        for key, value in find(model).example(batch).items()
    }
    if name in WORDS:
        arguments = _words(arguments, batch, WORDS[name])
    return SPECIAL[name](arguments) if name in SPECIAL else arguments


def _random(example: Tensor, generator: torch.Generator) -> Tensor:
    """Random pixels; where flattened patches come from, as those of an example say it."""
    values = torch.randn(example.shape, generator=generator)
    if example.dim() == 3 and example.any():
        values[..., :2] = example[..., :2]
    return values


def _words(arguments: dict[str, Tensor], batch: int, images: int = 0) -> dict[str, Tensor]:
    """With text, in which so many tokens stand for an image."""
    words = torch.tensor([[1, *[IMAGE] * images, 5, 7, 2]] * batch)
    return arguments | {"input_ids": words, "attention_mask": torch.ones_like(words)}


Special = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _among(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every image alone among those that a row has."""
    return arguments | {"pixel_values": arguments["pixel_values"].unsqueeze(1)}


def _queries(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    words = arguments["input_ids"][:, :3].clamp(max=9)
    return arguments | {
        "qformer_input_ids": words,
        "qformer_attention_mask": torch.ones_like(words),
    }


def _answers(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return arguments | {"decoder_input_ids": arguments["input_ids"]}


def _places(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return arguments | {"image_embeds_position_mask": arguments["input_ids"] == IMAGE}


def _seen(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    words = arguments["input_ids"]
    return _among(arguments) | {"image_attention_mask": torch.ones(*words.shape, 1)}


def _grids(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    arguments = dict(arguments)
    return arguments | {
        "pixel_values": arguments["pixel_values"][0],
        "image_grid_thw": arguments.pop("grid_thw"),
        "mm_token_type_ids": (arguments["input_ids"] == IMAGE).int(),
    }


def _merged(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    arguments = dict(arguments)
    return arguments | {
        "image_grid_thw": arguments.pop("grid_thw"),
        "image_merge_sizes": arguments.pop("merge_sizes"),
    }


def _codes(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return arguments | {"return_loss": False, "input_ids_masked": arguments["input_ids"]}


WORDS = dict.fromkeys(
    (
        "AltCLIPModel",
        "Aimv2Model",
        "BlipForConditionalGeneration",
        "BlipForImageTextRetrieval",
        "BlipForQuestionAnswering",
        "BlipModel",
        "Blip2ForImageTextRetrieval",
        "CLIPSegForImageSegmentation",
        "CLIPSegModel",
        "ChineseCLIPModel",
        "FlavaForPreTraining",
        "FlavaModel",
        "GitForCausalLM",
        "GitModel",
        "MetaClip2Model",
        "OwlViTForObjectDetection",
        "OwlViTModel",
        "Owlv2ForObjectDetection",
        "Owlv2Model",
        "Tipsv2Model",
    ),
    0,
) | {
    "Blip2Model": 3,
    "Blip2ForConditionalGeneration": 3,
    "InstructBlipModel": 3,
    "InstructBlipForConditionalGeneration": 3,
    "InstructBlipVideoModel": 3,
    "InstructBlipVideoForConditionalGeneration": 3,
    "InternVLModel": 4,
    "InternVLForConditionalGeneration": 4,
    "Kosmos2Model": 3,
    "Kosmos2ForConditionalGeneration": 3,
    "PaddleOCRVLModel": 4,
    "PaddleOCRVLForConditionalGeneration": 4,
    "VideoLlama3Model": 256,
    "VideoLlama3ForConditionalGeneration": 256,
    "Kosmos2_5Model": 3,
    "Kosmos2_5ForConditionalGeneration": 3,
    "QianfanOCRModel": 4,
    "QianfanOCRForConditionalGeneration": 4,
    "Ovis2Model": 16,
    "Ovis2ForConditionalGeneration": 16,
    "IdeficsModel": 0,
    "IdeficsForVisionText2Text": 0,
    "JanusModel": 16,
    "JanusForConditionalGeneration": 16,
    "Idefics2Model": 3,
    "Idefics2ForConditionalGeneration": 3,
    "Idefics3Model": 4,
    "Idefics3ForConditionalGeneration": 4,
    "SmolVLMModel": 4,
    "SmolVLMForConditionalGeneration": 4,
}
"""Classes that read text too, and how many of its tokens stand for an image."""

SPECIAL: dict[str, Special] = {
    "BlipForQuestionAnswering": _answers,
    "InstructBlipModel": _queries,
    "InstructBlipForConditionalGeneration": _queries,
    "InstructBlipVideoModel": lambda arguments: _among(_queries(arguments)),
    "InstructBlipVideoForConditionalGeneration": lambda arguments: _among(_queries(arguments)),
    **dict.fromkeys(("Kosmos2Model", "Kosmos2ForConditionalGeneration"), _places),
    **dict.fromkeys(("Kosmos2_5Model", "Kosmos2_5ForConditionalGeneration"), _places),
    **dict.fromkeys(("IdeficsModel", "IdeficsForVisionText2Text"), _seen),
    **dict.fromkeys(("PaddleOCRVLModel", "PaddleOCRVLForConditionalGeneration"), _grids),
    "Pix2StructForConditionalGeneration": lambda arguments: (
        arguments | {"decoder_input_ids": torch.tensor([[1, 5], [1, 7]])}
    ),
    **dict.fromkeys(("VideoLlama3Model", "VideoLlama3ForConditionalGeneration"), _merged),
    "FlavaForPreTraining": _codes,
    **dict.fromkeys(("Idefics2Model", "Idefics2ForConditionalGeneration"), _among),
    **dict.fromkeys(("Idefics3Model", "Idefics3ForConditionalGeneration"), _among),
    **dict.fromkeys(("SmolVLMModel", "SmolVLMForConditionalGeneration"), _among),
    "VitPoseBackbone": lambda arguments: arguments | {"dataset_index": torch.tensor([0, 1])},
}
"""What classes are called with that nothing else is."""
