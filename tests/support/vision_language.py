"""Small vision-language models of transformers, and prompts as their processors make them."""

import functools
from typing import Any

import torch
from torch import Tensor

from support.hf_hosts import CLIP, GEMMA, GEMMA3, PIXTRAL, SIGLIP, TOKEN
from support.hf_models import IMAGE, LLAMA, QWEN, VISION, Options
from support.models import scatter

SIDE = {"image_size": 32}
"""Eight by eight patches."""

WORDS = LLAMA | {"max_position_embeddings": 256}

TEXT_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

QWEN_TOWER = {
    "depth": 4,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
    "vision_start_token_id": IMAGE + 2,
    "vision_end_token_id": IMAGE + 3,
}

QWEN_WORDS = {k: v for k, v in QWEN.items() if k != "model_type"} | {
    "rope_parameters": TEXT_ROPE,
    "max_position_embeddings": 256,
}

MODELS: dict[str, Options] = {
    "Llava": {
        "vision_config": CLIP | SIDE,
        "text_config": WORDS,
        "image_token_index": IMAGE,
        "vision_feature_layer": -2,
    },
    "PaliGemma": {
        "vision_config": SIGLIP | SIDE,
        "text_config": GEMMA | {"max_position_embeddings": 256},
        "projection_dim": 32,
    }
    | TOKEN,
    "DeepseekVL": {"vision_config": SIGLIP | SIDE, "text_config": WORDS} | TOKEN,
    "Gemma3": {
        "vision_config": SIGLIP | SIDE,
        "text_config": GEMMA3 | {"max_position_embeddings": 256, "sliding_window": 64},
        "mm_tokens_per_image": 16,
    }
    | TOKEN,
    "Idefics3": {"vision_config": VISION | SIDE, "text_config": WORDS, "scale_factor": 2} | TOKEN,
    "SmolVLM": {"vision_config": VISION | SIDE, "text_config": WORDS, "scale_factor": 2} | TOKEN,
    "InternVL": {
        "vision_config": VISION | {"image_size": [32, 32], "patch_size": [4, 4]},
        "text_config": WORDS,
        "image_seq_length": 16,
    }
    | TOKEN,
    "Mistral3": {
        "vision_config": PIXTRAL | SIDE,
        "text_config": WORDS | {"model_type": "mistral"},
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    }
    | TOKEN,
    "Qwen2VL": {
        "vision_config": QWEN_TOWER | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        "text_config": QWEN_WORDS,
    }
    | QWEN_TOKENS,
    "Qwen2_5_VL": {
        "vision_config": QWEN_TOWER
        | {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "window_size": 16,
            "fullatt_block_indexes": [1, 3],
        },
        "text_config": QWEN_WORDS,
    }
    | QWEN_TOKENS,
    "Qwen3VL": {
        "vision_config": QWEN_TOWER
        | {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1, 2],
        },
        "text_config": QWEN_WORDS | {"head_dim": 8, "num_hidden_layers": 3},
    }
    | QWEN_TOKENS,
}
"""What makes a small model of each."""

BY_TOKEN = ("Llava", "PaliGemma", "DeepseekVL")

BY_SQUARE = tuple(name for name in MODELS if name not in BY_TOKEN)

SIZED = ("Mistral3", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
"""Those that take images of several sizes in one call."""

PACKED = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")


def area(name: str) -> int:
    """How many patches become one visual token."""
    return 1 if name in BY_TOKEN else 4


def build(name: str) -> Any:
    """A small model that generates text."""
    import transformers

    cls = getattr(transformers, f"{name}ForConditionalGeneration")
    torch.manual_seed(0)
    model = scatter(cls(cls.config_class(**MODELS[name]))).eval()
    model.generation_config.pad_token_id = 0
    return model


@functools.lru_cache(64)
def picture(seed: int, height: int = 32, width: int = 32) -> Tensor:
    """A random image `[3, H, W]` that is not the same everywhere, nor noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return smooth + 0.1 * torch.randn(3, height, width, generator=generator)


def inputs(name: str, images: list[Tensor], rows: int | None = None) -> dict[str, Any]:
    """What a processor makes of images and a few words: a prompt for each image, or all of them
    in so many rows, one after the other; rows that are shorter are padded on the left.
    """
    rows = len(images) if rows is None else rows
    each = [images[row::rows] for row in range(rows)]
    texts = [[1, *_prompt(name, own), 5 + row, 7] for row, own in enumerate(each)]
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(t)) + t for t in texts])
    mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts])
    made: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if name in ("PaliGemma", "Gemma3"):
        made["token_type_ids"] = (ids == IMAGE).long() * (name == "Gemma3")
    if name in PACKED:
        made["mm_token_type_ids"] = (ids == IMAGE).long()
    return made | _pixels(name, each)


def _prompt(name: str, images: list[Tensor]) -> list[int]:
    tokens: list[int] = []
    for image in images:
        patches = image.shape[1] * image.shape[2] // 16
        visual = [IMAGE] * (patches // area(name))
        tokens += [IMAGE + 2, *visual, IMAGE + 3]
    return tokens


def _pixels(name: str, each: list[list[Tensor]]) -> dict[str, Any]:
    images = [image for own in each for image in own]
    if name in PACKED:
        shapes = [[1, i.shape[1] // 4, i.shape[2] // 4] for i in images]
        pixels = torch.cat([patches(image) for image in images])
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor(shapes)}
    if name == "Mistral3":
        height, width = (max(i.shape[axis] for i in images) for axis in (1, 2))
        pad = torch.nn.functional.pad
        grown = [pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
        sizes = torch.tensor([i.shape[1:] for i in images])
        return {"pixel_values": torch.stack(grown), "image_sizes": sizes}
    if name in ("Idefics3", "SmolVLM"):  # rows with fewer images get blank ones
        most, blank = max(map(len, each)), torch.zeros_like(images[0])
        return {"pixel_values": torch.stack([_stacked(own, most, blank) for own in each])}
    return {"pixel_values": torch.stack(images)}


def _stacked(images: list[Tensor], most: int, blank: Tensor) -> Tensor:
    return torch.stack([*images, *[blank] * (most - len(images))])


def patches(image: Tensor) -> Tensor:
    """`[N, D]`: an image as Qwen's processors hand it out, square after square, two frames of
    it."""
    channels, height, width = image.shape
    frames = image.expand(2, -1, -1, -1)
    split = frames.view(2, channels, height // 8, 2, 4, width // 8, 2, 4)
    return split.permute(2, 5, 3, 6, 1, 0, 4, 7).flatten(4).flatten(0, 3)
