"""Hugging Face's trunks: vision models that hand their keyword arguments down to every layer,
and so the run of a folded call too."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.proxy import call as call_module
from vitfold.folding.families.trunks import (
    Arguments,
    Grid,
    Size,
    TrunkKind,
    blank_images,
    check_depth,
    check_ran,
    common_grid,
)
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState


def call(
    path: str, trunk: Any, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the trunk's forward on the folded layers that lie at `path`; its outputs are dense."""
    if _asked(trunk, "output_attentions", kwargs):
        raise UnsupportedModel(
            "a folded model has no dense attention maps: call without output_attentions, "
            "or unfold it first"
        )
    check_depth(trunk, trunk.get_submodule(path), run)
    shows = _is_backbone(trunk) or _asked(trunk, "output_hidden_states", kwargs)
    run.shape = "dense" if shows else "dense at the end"
    outputs = getattr(type(trunk), method)(trunk, *args, vitfold=run, **kwargs)
    check_ran(trunk, run)
    if _is_backbone(trunk) or not run.last.drops:
        return outputs
    return _read_again(outputs, trunk, run.last)


def _asked(trunk: Any, option: str, kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get(option) or getattr(trunk.config, option, False))


def _is_backbone(trunk: Any) -> bool:
    """Whether it hands out what leaves every layer, and nothing else."""
    return hasattr(trunk, "out_features")


def _read_again(outputs: Any, trunk: Any, state: TokenState) -> Any:
    """Outputs in which dropped positions show the mean of normalized survivors, and attention
    pooling sees survivors alone."""
    survivors, head = state.fold(outputs[0]), getattr(trunk, "head", None)
    read = {"last_hidden_state": state.unfold(survivors)}
    if head is not None:
        read["pooler_output"] = _pool(head, *state.level(survivors))
    if isinstance(outputs, tuple):
        return (*read.values(), *outputs[len(read) :])
    for name, tensor in read.items():
        outputs[name] = tensor
    return outputs


def _pool(head: Any, x: Tensor, state: TokenState) -> Tensor:
    """Attention pooling over tokens that count as often as their sizes, padding not at all."""
    bias = state.sizes().log().to(x.dtype)
    if state.valid is not None:
        bias = bias.masked_fill(~state.valid, float("-inf"))

    def attention(probe: Tensor, keys: Tensor, values: Tensor, **_: Any) -> Any:
        mask = bias.repeat_interleave(head.attention.num_heads, dim=0).unsqueeze(1)
        return head.attention(probe, keys, values, attn_mask=mask)

    return call_module(head, {"attention": attention}, x)


def _width(trunk: Any) -> int:
    return int(trunk.config.hidden_size)


def _class_token(prefix: Callable[[Any], int], trunk: Any) -> bool:
    return prefix(trunk) > 0


def _reads_patches(prefix: Callable[[Any], int], trunk: Any) -> bool:
    averages = getattr(trunk.config, "use_mean_pooling", False)
    return prefix(trunk) == 0 or averages or _is_backbone(trunk)


def _size(trunk: Any) -> Size:
    size = trunk.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(trunk.config, "num_channels", 3)), int(height), int(width)


def _grid(trunk: Any, arguments: Arguments) -> Grid:
    images, patch = arguments.get("pixel_values"), trunk.config.patch_size
    if images is None:
        return None
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return images.shape[-2] // height, images.shape[-1] // width


def _example(trunk: Any, batch: int) -> dict[str, Any]:
    return {"pixel_values": blank_images(trunk, _size(trunk), batch)}


def _trunk(
    blocks: str, prefix: Callable[[Any], int], arguments: tuple[str, ...] = ("pixel_values",)
) -> TrunkKind:
    return TrunkKind(
        blocks=blocks,
        entries=("forward",),
        call=functools.partial(call, blocks),
        width=_width,
        prefix=prefix,
        class_token=functools.partial(_class_token, prefix),
        reads_patches=functools.partial(_reads_patches, prefix),
        size=_size,
        arguments=arguments,
        grid=_grid,
        example=_example,
        padding=functools.partial(_padding, prefix),
    )


def _padding(prefix: Callable[[Any], int], trunk: Any, arguments: Arguments) -> Tensor | None:
    """What a mask over all tokens says of the patches."""
    mask = arguments.get("attention_mask")
    return None if mask is None or mask.dim() != 2 else mask[:, prefix(trunk) :].bool()


def _siglip2_size(trunk: Any) -> Size:
    side = int(trunk.config.num_patches**0.5) * trunk.config.patch_size
    return int(trunk.config.num_channels), side, side


def _siglip2_example(trunk: Any, batch: int) -> dict[str, Any]:
    channels, side, _ = _siglip2_size(trunk)
    patch = trunk.config.patch_size
    patches = (side // patch) ** 2
    pixels = blank_images(trunk, (patches, channels * patch**2, 1), batch).squeeze(-1)
    shape = torch.tensor([[side // patch] * 2] * batch, device=pixels.device)
    mask = torch.ones(batch, patches, dtype=torch.long, device=pixels.device)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shape}


def _siglip2_grid(_: Any, arguments: Arguments) -> Grid:
    shapes = arguments.get("spatial_shapes")
    return None if shapes is None else common_grid(shapes)


def _siglip2_padding(_: Any, arguments: Arguments) -> Tensor | None:
    mask = arguments.get("pixel_attention_mask")
    return None if mask is None else mask.bool()


def _none(_: Any) -> int:
    return 0


def _one(_: Any) -> int:
    return 1


def _two(_: Any) -> int:
    return 2


def _registers(trunk: Any) -> int:
    return 1 + int(trunk.config.num_register_tokens)


_MASKED = ("pixel_values", "bool_masked_pos", "interpolate_pos_encoding", "attention_mask")
_DINO_MASKED = ("pixel_values", "bool_masked_pos", "attention_mask")
_BACKBONE_MASKED = ("pixel_values", "attention_mask")

_SIGLIP2 = replace(
    _trunk("encoder.layers", _none, ("pixel_values", "pixel_attention_mask", "spatial_shapes")),
    size=_siglip2_size,
    grid=_siglip2_grid,
    example=_siglip2_example,
    padding=_siglip2_padding,
)

_KNOWN: dict[str, tuple[TrunkKind, tuple[str, ...]]] = {
    "vit.modeling_vit.ViTModel": (
        _trunk("layers", _one, _MASKED),
        ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
    ),
    "deit.modeling_deit.DeiTModel": (
        _trunk("layers", _two, _MASKED),
        (
            "DeiTModel",
            "DeiTForImageClassification",
            "DeiTForImageClassificationWithTeacher",
            "DeiTForMaskedImageModeling",
        ),
    ),
    "beit.modeling_beit.BeitModel": (
        _trunk("layers", _one, _MASKED),
        (
            "BeitModel",
            "BeitForImageClassification",
            "BeitForMaskedImageModeling",
            "BeitForSemanticSegmentation",
            "BeitBackbone",
        ),
    ),
    "dinov2.modeling_dinov2.Dinov2Model": (
        _trunk("encoder.layer", _one, _DINO_MASKED),
        ("Dinov2Model", "Dinov2ForImageClassification"),
    ),
    "dinov2.modeling_dinov2.Dinov2Backbone": (
        _trunk("encoder.layer", _one, _BACKBONE_MASKED),
        ("Dinov2Backbone",),
    ),
    "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel": (
        _trunk("encoder.layer", _registers, _DINO_MASKED),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
    ),
    "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersBackbone": (
        _trunk("encoder.layer", _registers, _BACKBONE_MASKED),
        ("Dinov2WithRegistersBackbone",),
    ),
    "dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel": (
        _trunk("model.layer", _registers),
        ("DINOv3ViTModel",),
    ),
    "dinov3_vit.modeling_dinov3_vit.DINOv3ViTBackbone": (
        _trunk("model.layer", _registers),
        ("DINOv3ViTBackbone",),
    ),
    "clip.modeling_clip.CLIPVisionModel": (
        _trunk("encoder.layers", _one),
        (
            "CLIPVisionModel",
            "CLIPVisionModelWithProjection",
            "CLIPModel",
            "CLIPForImageClassification",
        ),
    ),
    "siglip.modeling_siglip.SiglipVisionModel": (
        _trunk("encoder.layers", _none),
        ("SiglipVisionModel", "SiglipModel", "SiglipForImageClassification"),
    ),
    "siglip2.modeling_siglip2.Siglip2VisionModel": (
        _SIGLIP2,
        ("Siglip2VisionModel", "Siglip2Model", "Siglip2ForImageClassification"),
    ),
}
"""Trunks by their place in transformers, and the classes that are one, or a trunk and a head."""

TRUNKS = {f"transformers.models.{place}": kind for place, (kind, _) in _KNOWN.items()}

MODELS = {f"transformers.models.{place}": classes for place, (_, classes) in _KNOWN.items()}

CLASSES = tuple(name for names in MODELS.values() for name in names)

READERS = frozenset(
    {
        "BeitForMaskedImageModeling",
        "BeitForSemanticSegmentation",
        "CLIPForImageClassification",
        "DeiTForMaskedImageModeling",
        "Dinov2ForImageClassification",
        "Dinov2WithRegistersForImageClassification",
        "ViTForMaskedImageModeling",
    }
)
"""Those among them that read patches, whatever their trunk does."""

HOSTS = frozenset(
    {
        "TimmBackbone",
        "TimmWrapperForImageClassification",
        "TimmWrapperModel",
        "ShieldGemma2ForImageClassification",
    }
)
"""Classes that hold a model of another family, and fold if that does."""
