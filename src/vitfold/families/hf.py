"""Hugging Face's trunks: vision models that hand their keyword arguments down to every layer,
and so the run of a folded call too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitfold.errors import UnsupportedModel
from vitfold.blocks.standin import run as run_method
from vitfold.families.trunks import Arguments, Grid, Size, Trunk, blank_images, no_padding
from vitfold.ledger import Ledger
from vitfold.run import Run


def call(
    trunk: Any, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the trunk's forward on the folded layers; its outputs are dense."""
    if kwargs.get("output_attentions", getattr(trunk.config, "output_attentions", False)):
        raise UnsupportedModel(
            "a folded model has no dense attention maps: call without output_attentions, "
            "or unfold it first"
        )
    run.shape = "dense at the end"
    outputs = getattr(type(trunk), method)(trunk, *args, vitfold=run, **kwargs)
    head = getattr(trunk, "head", None)
    dropped = any(step.fate != "merged" for step in run.last.maps)
    return _pool_again(outputs, head, run.last) if head is not None and dropped else outputs


def _pool_again(outputs: Any, head: Any, ledger: Ledger) -> Any:
    """Attention pooling over the tokens that survive, in place of that over dense ones."""
    if isinstance(outputs, tuple):
        return (outputs[0], _pool(head, outputs[0], ledger), *outputs[2:])
    outputs.pooler_output = _pool(head, outputs.last_hidden_state, ledger)
    return outputs


def _pool(head: Any, dense: Tensor, ledger: Ledger) -> Tensor:
    bias = torch.zeros(dense.shape[0], ledger.now, dtype=dense.dtype, device=dense.device)
    if ledger.size is not None:
        bias = bias + ledger.size.log().to(dense.dtype)
    if ledger.valid is not None:
        bias = bias.masked_fill(~ledger.valid, float("-inf"))

    def attention(probe: Tensor, keys: Tensor, values: Tensor, **unused: Any) -> Any:
        mask = bias.repeat_interleave(head.attention.num_heads, dim=0).unsqueeze(1)
        return head.attention(probe, keys, values, attn_mask=mask)

    return run_method(head, "forward", {"attention": attention}, ledger.fold(dense))  # type: ignore[no-any-return]


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


def _trunk(blocks: str, prefix: Callable[[Any], int]) -> Trunk:
    return Trunk(
        "transformers",
        blocks,
        ("forward",),
        call,
        prefix,
        _size,
        ("pixel_values",),
        _grid,
        _example,
        no_padding,
    )


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


def _siglip2_grid(trunk: Any, arguments: Arguments) -> Grid:
    shapes = arguments.get("spatial_shapes")
    if shapes is None or torch.compiler.is_compiling() or bool((shapes != shapes[:1]).any()):
        return None
    return int(shapes[0, 0]), int(shapes[0, 1])


def _siglip2_padding(arguments: Arguments) -> Tensor | None:
    mask = arguments.get("pixel_attention_mask")
    return None if mask is None else mask.bool()


def _none(trunk: Any) -> int:
    return 0


def _one(trunk: Any) -> int:
    return 1


def _two(trunk: Any) -> int:
    return 2


def _registers(trunk: Any) -> int:
    return 1 + int(trunk.config.num_register_tokens)


_MODELS = "transformers.models."
_DINO2 = _trunk("encoder.layer", _one)
_DINO2_REGISTERS = _trunk("encoder.layer", _registers)
_DINO3 = _trunk("model.layer", _registers)

TRUNKS: dict[str, Trunk] = {
    f"{_MODELS}vit.modeling_vit.ViTModel": _trunk("layers", _one),
    f"{_MODELS}deit.modeling_deit.DeiTModel": _trunk("layers", _two),
    f"{_MODELS}beit.modeling_beit.BeitModel": _trunk("layers", _one),
    f"{_MODELS}dinov2.modeling_dinov2.Dinov2Model": _DINO2,
    f"{_MODELS}dinov2.modeling_dinov2.Dinov2Backbone": _DINO2,
    f"{_MODELS}dinov2_with_registers.modeling_dinov2_with_registers"
    ".Dinov2WithRegistersModel": _DINO2_REGISTERS,
    f"{_MODELS}dinov2_with_registers.modeling_dinov2_with_registers"
    ".Dinov2WithRegistersBackbone": _DINO2_REGISTERS,
    f"{_MODELS}dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel": _DINO3,
    f"{_MODELS}dinov3_vit.modeling_dinov3_vit.DINOv3ViTBackbone": _DINO3,
    f"{_MODELS}clip.modeling_clip.CLIPVisionModel": _trunk("encoder.layers", _one),
    f"{_MODELS}siglip.modeling_siglip.SiglipVisionModel": _trunk("encoder.layers", _none),
    f"{_MODELS}siglip2.modeling_siglip2.Siglip2VisionModel": Trunk(
        "transformers",
        "encoder.layers",
        ("forward",),
        call,
        _none,
        _siglip2_size,
        ("pixel_values", "pixel_attention_mask", "spatial_shapes"),
        _siglip2_grid,
        _siglip2_example,
        _siglip2_padding,
    ),
}
