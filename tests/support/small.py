"""Small models with random weights, in which decisions are clear, and images for them."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SHARED = {"patch_size": 4, "in_chans": 3, "num_classes": 7, "mlp_ratio": 2.0}


def spread(model: nn.Module, seed: int) -> nn.Module:
    """Weights of a size that lets every part of the model matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        scale, offset = _scale(name, weight)
        weight.data.copy_(offset + scale * noise)
    return model.eval()


def _scale(name: str, weight: Tensor) -> tuple[float, float]:
    """Deviation and mean of a weight."""
    last = name.rsplit(".", 1)[-1]
    if last in ("pos_embed", "cls_token", "reg_token", "dist_token"):
        return 0.5, 0.0
    if last.startswith("gamma") or (weight.dim() == 1 and last == "weight"):
        return 0.2, 0.9
    return (0.1, 0.0) if weight.dim() == 1 else (1.5 * weight[0].numel() ** -0.5, 0.0)


def vit(grid: tuple[int, int] = (7, 7), depth: int = 4, **options: Any) -> nn.Module:
    size = (grid[0] * 4, grid[1] * 4)
    settings = {"embed_dim": 48, "num_heads": 3} | SHARED | options
    return spread(VisionTransformer(img_size=size, depth=depth, **settings), seed=0)


def deit(grid: tuple[int, int] = (7, 7), depth: int = 4, **options: Any) -> nn.Module:
    size = (grid[0] * 4, grid[1] * 4)
    settings = {"embed_dim": 48, "num_heads": 3} | SHARED | options
    return spread(VisionTransformerDistilled(img_size=size, depth=depth, **settings), seed=1)


def dino(grid: tuple[int, int] = (7, 7), depth: int = 4, **options: Any) -> nn.Module:
    """Like DINOv2: LayerScale, registers without positions."""
    defaults = {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True, "qk_norm": True}
    return vit(grid, depth, **(defaults | options))


def eva(grid: tuple[int, int] = (7, 7), depth: int = 4, **options: Any) -> nn.Module:
    """Like EVA-02: rotary positions, a gated MLP with a norm, average pooling."""
    size = (grid[0] * 4, grid[1] * 4)
    settings = {"embed_dim": 64, "num_heads": 4, "swiglu_mlp": True, "scale_mlp": True}
    settings |= {"use_rot_pos_emb": True, "ref_feat_shape": (6, 6), "qkv_fused": False}
    return spread(Eva(img_size=size, depth=depth, **(settings | SHARED | options)), seed=2)


def dino3(grid: tuple[int, int] = (7, 7), depth: int = 4, **options: Any) -> nn.Module:
    """Like DINOv3: rotary positions in halves, LayerScale, registers, no table of positions."""
    defaults = {"rope_type": "dinov3", "rope_rotate_half": True, "use_abs_pos_emb": False}
    defaults |= {"num_reg_tokens": 4, "init_values": 1.0, "ref_feat_shape": None}
    defaults |= {"global_pool": "token", "swiglu_mlp": False, "scale_mlp": False}
    return eva(grid, depth, **(defaults | {"qkv_fused": True} | options))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vit": vit,
    "deit": deit,
    "dino": dino,
    "eva": eva,
    "dino3": dino3,
}


def images(model: Any, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images of the size that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = model.patch_embed.img_size
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)
