"""DINOv2 in the layout of its own repository: `DinoVisionTransformer`, whose blocks may lie in
chunks, with attention that takes no bias by itself."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfold.errors import ShapeError
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.names import maker
from vitfold.folding.families.base import Family
from vitfold.folding.families.common import Arguments, Chain, Grid, check_depth, links
from vitfold.folding.families.registry import register_family
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState

PLACES = (
    ("dinov2.models.vision_transformer.", "dinov2.layers."),
    ("depth_anything_v2.dinov2.", "depth_anything_v2.dinov2_layers."),
    (
        "lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer.",
        "lightly_train._models.dinov2_vit.dinov2_vit_src.layers.",
    ),
)
"""Packages that carry that code: where the trunk is, and its layers."""

MANY_IMAGES = 0.1
"""The rate of stochastic depth above which blocks leave out images, to save time."""


@register_family
class DINOv2(Family):
    """DINOv2, with and without registers."""

    trunks: ClassVar[tuple[str, ...]] = tuple(
        trunk + "DinoVisionTransformer" for trunk, _ in PLACES
    )
    entries: ClassVar[tuple[str, ...]] = ("forward", "forward_features", "get_intermediate_layers")
    arguments: ClassVar[tuple[str, ...]] = ("x", "masks")
    block_types: ClassVar[tuple[str, ...]] = tuple(
        f"{layers}block.{name}" for _, layers in PLACES for name in ("Block", "NestedTensorBlock")
    )
    attention_types: ClassVar[tuple[str, ...]] = tuple(
        f"{layers}attention.{name}"
        for _, layers in PLACES
        for name in ("Attention", "MemEffAttention")
    )
    class_token: Any = True

    # The trunk

    def find_blocks(self) -> Sequence[nn.Module]:
        """Chunks begin with an `Identity` for every block before them."""
        if not self.chunked:
            return super().find_blocks()
        return [b for chunk in self.trunk.blocks for b in chunk if not isinstance(b, nn.Identity)]

    @property
    def chunked(self) -> bool:
        """Whether its blocks lie in chunks."""
        return bool(self.trunk.chunked_blocks)

    @property
    def prefix(self) -> int:
        return 1 + int(getattr(self.trunk, "num_register_tokens", 0))

    reads_patches: Any = False

    def read_by(self, hosts: Sequence[nn.Module]) -> bool:
        """Heads of its own repository, and decoders, read its patches."""
        return bool(hosts)

    def grid(self, arguments: Arguments) -> Grid:
        images = arguments.get("x")
        if isinstance(images, list | tuple):
            raise ShapeError(
                "a list of images runs nested in DINOv2, where they would attend by xFormers: "
                "call the folded model once for every size"
            )
        return super().grid(arguments)

    # A call

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run.shape = "dense" if method in self.shows else "dense at the end"
        own = maker(type(self.trunk)) in self.trunks and not kwargs.get("is_training")
        if method == "forward" and own:
            run.shape = "reduced"  # of which the class token alone is read
        out = self.run(method, run, args, kwargs)
        return _filled(out, run) if isinstance(out, dict) and run.last.drops else out

    def chain(self, run: Run) -> Chain:
        if not self.chunked:
            return super().chain(run)
        container = self.trunk.blocks
        check_depth(self.trunk, self.find_blocks(), run)
        return Chain([Chain(_links(chunk, run), chunk) for chunk in container], container)

    # Blocks

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        out = block.ls1(_attended(block, block.norm1(x), attend.bias(x), attend))
        return _added(block, x, out)

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return _added(block, x, block.ls2(block.mlp(block.norm2(x))))

    # Attention

    def fused(self, attention: Any) -> Mapping[str, Any]:
        return {"forward": _fused}

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        return {"forward": _fused}


def _links(chunk: Any, run: Run) -> list[Any]:
    folded = iter(links([b for b in chunk if not isinstance(b, nn.Identity)], run))
    return [b if isinstance(b, nn.Identity) else next(folded) for b in chunk]


def _attended(block: Block, y: Tensor, bias: Tensor | None, attend: Attend) -> Tensor:
    """The output of a block's attention: by the module's own code while there is no bias."""
    return attend(block.attn, y) if bias is None else attend(block.attn, y, attn_mask=bias)


def _added(block: Block, x: Tensor, out: Tensor) -> Tensor:
    """What a half adds; in training some images go without."""
    ratio = block.sample_drop_ratio
    if not block.training or not ratio:
        return x + out
    if ratio <= MANY_IMAGES:
        return x + block.drop_path1(out)
    batch = x.shape[0]
    subset = torch.randperm(batch, device=x.device)[: max(int(batch * (1 - ratio)), 1)]
    scale = batch / len(subset)
    return x.index_add(0, subset, out[subset].to(x.dtype), alpha=scale)


def _fused(attention: Any, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """What its attention computes, with a bias."""
    heads = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    dropout = attention.attn_drop.p if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
    return attention.proj_drop(attention.proj(out.transpose(1, 2).flatten(2)))


def _filled(out: dict[str, Any], run: Run) -> dict[str, Any]:
    """Features in which a dropped position shows the mean of normalized survivors."""
    names = [name for name in out if name.startswith("x_norm_")]
    whole = torch.cat([_tokens(out[name]) for name in sorted(names, key=_place)], dim=1)
    state: TokenState = run.last
    whole = state.unfold(state.fold(whole))
    return out | {"x_norm_patchtokens": whole[:, state.prefix :]}


def _tokens(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x.unsqueeze(1)


def _place(name: str) -> int:
    return ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens").index(name)
