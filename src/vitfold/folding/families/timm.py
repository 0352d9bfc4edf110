"""timm's trunks. Their own forward runs; only the list of blocks, and the pooling, is replaced."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vitfold.errors import ShapeError
from vitfold.folding.blocks.names import maker
from vitfold.folding.blocks.proxy import StandIn, hooked
from vitfold.folding.blocks.proxy import run as run_method
from vitfold.folding.families.trunks import (
    Arguments,
    Grid,
    Size,
    TrunkKind,
    blank_images,
    check_depth,
    check_ran,
    common_grid,
    no_padding,
    with_prefix,
)
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState, four

Link = Callable[..., Tensor]


class Chain:
    """The blocks of one forward pass, in place of a trunk's container of blocks."""

    def __init__(self, links: list[Link], container: nn.Module | None = None) -> None:
        self.links = links
        self.container = container

    def __len__(self) -> int:
        return len(self.links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    def __getitem__(self, index: Any) -> Any:
        return Chain(self.links[index]) if isinstance(index, slice) else self.links[index]

    def __call__(self, x: Tensor) -> Tensor:
        """One after the other, and what hooks on the container do around them."""
        if self.container is None or not hooked(self.container):
            return self._pass(x)
        stand_in: Any = StandIn(self.container, forward=self._pass)
        return nn.Module._call_impl(stand_in, x)

    def _pass(self, x: Tensor) -> Tensor:
        for link in self.links:
            x = link(x)
        return x


def call(trunk: Any, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a method of the trunk on the folded blocks."""
    check_depth(trunk, trunk.blocks, run)
    parts = _parts(trunk, run)
    if method == "forward" and (maker(type(trunk)) not in HEADS or hooked(trunk.blocks)):
        run.shape = "dense at the end"  # nobody knows what is done with its tokens
        out = run_method(trunk, "forward", _showing(trunk, run, parts), *args, **kwargs)
    elif method == "forward":
        parts["forward_features"] = functools.partial(
            run_method, trunk, "forward_features", dict(parts)
        )
        parts["forward_head"] = functools.partial(_head, trunk, run)
        out = run_method(trunk, "forward", parts, *args, **kwargs)
    else:
        run.shape = "dense" if method == "forward_intermediates" else "dense at the end"
        out = run_method(trunk, method, parts, *args, **kwargs)
    check_ran(trunk, run)
    return _filled(out, run.last) if method == "forward_features" else out


def _parts(trunk: Any, run: Run) -> dict[str, Any]:
    """What a method of the trunk finds in place of its own."""
    parts: dict[str, Any] = {
        "blocks": Chain([functools.partial(b, vitfold=run) for b in trunk.blocks], trunk.blocks)
    }
    if run.valid is not None and hasattr(trunk, "_forward_embeds"):
        parts["_forward_embeds"] = functools.partial(_embed_padded, trunk, run)
    return parts


def _showing(trunk: Any, run: Run, parts: dict[str, Any]) -> dict[str, Any]:
    """Parts for a forward of its own: it reads dense features, as anybody else."""

    def features(*args: Any, **kwargs: Any) -> Any:
        out = run_method(trunk, "forward_features", dict(parts), *args, **kwargs)
        return _filled(out, run.last)

    return {**parts, "forward_features": features}


def _embed_padded(trunk: Any, run: Run, *args: Any, **kwargs: Any) -> Any:
    """NaFlex's embedding; patch dropout leaves other patches than those that were given."""
    embeds = trunk._forward_embeds(*args, **kwargs)
    run.valid = with_prefix(embeds["patch_valid"].bool(), run.prefix)
    return embeds


def _filled(out: Any, state: TokenState) -> Any:
    """Dense features in which a dropped position shows the mean of normalized survivors."""
    if not state.drops:
        return out
    if isinstance(out, dict):
        return out | {"patches": _filled(out["patches"], state)}
    return state.unfold(state.fold(out))


def _head(trunk: Any, run: Run, x: Any = None, **kwargs: Any) -> Any:
    """The trunk's head on a reduced sequence: pooling weighs every token by its size."""
    check_ran(trunk, run)
    state, pooling = run.last, _pooling(trunk)
    if x is None:  # NaFlex passes its features by name
        x = kwargs.pop("patches")
    if not state.changed:
        return trunk.forward_head(x, **kwargs)
    if pooling == "other" or (pooling == "plain" and state.size is not None):
        return trunk.forward_head(state.unfold(x), **kwargs)
    if "patch_valid" in kwargs:
        valid = state.valid
        kwargs["patch_valid"] = None if valid is None else valid[:, state.prefix :]
    if pooling == "latent":
        return run_method(trunk, "forward_head", _attention_pool(trunk, state), x, **kwargs)
    if pooling == "avg":
        x = _weighted(trunk, x, state, kwargs.get("patch_valid"))
    return trunk.forward_head(x, **kwargs)


HEADS = frozenset(
    {
        "timm.models.vision_transformer.VisionTransformer",
        "timm.models.deit.VisionTransformerDistilled",
        "timm.models.eva.Eva",
        "timm.models.beit.Beit",
        "timm.models.vision_transformer_relpos.VisionTransformerRelPos",
        "timm.models.naflexvit.NaFlexVit",
    }
)
"""Classes whose head and pooling are known; the others' get dense tokens."""


def _pooling(trunk: Any) -> str:
    """How the trunk reads out: `token`, `avg`, `latent` (attention); `plain`, what may take fewer
    tokens but not weighted ones; `other`, what needs them all."""
    readers = [name for name in ("forward_head", "pool", "_pool") if hasattr(trunk, name)]
    known = {maker(type(trunk), name) for name in readers} <= HEADS
    replaced = any(name in vars(trunk) for name in readers)
    if not known or replaced or not trunk.global_pool:
        return "other"
    pool = getattr(trunk, "attn_pool", None)
    if pool is None:
        return trunk.global_pool if trunk.global_pool in ("token", "avg") else "plain"
    if isinstance(pool, AttentionPoolLatent):
        return "latent" if pool.pos_embed is None else "other"
    return "plain"


def _weighted(trunk: Any, x: Tensor, state: TokenState, valid: Tensor | None) -> Tensor:
    """`x` scaled so that its mean, over what is valid, is the mean weighted by size."""
    if state.size is None:
        return x
    first = 0 if getattr(trunk, "pool_include_prefix", False) else state.prefix
    size = state.size if state.valid is None else state.size * state.valid
    pooled = size[:, first:]
    number = pooled.shape[1] if valid is None else (pooled > 0).sum(dim=1, keepdim=True)
    weight = size * (number / pooled.sum(dim=1, keepdim=True).clamp(min=1e-6))
    return x * weight.unsqueeze(-1).to(x.dtype)


def _attention_pool(trunk: Any, state: TokenState) -> dict[str, Any]:
    """Parts with which attention pooling counts a token of size s s times."""

    def attention(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        bias = state.log_size(x)
        if bias is not None:
            bias = bias[..., -x.shape[1] :]  # the trunk may leave out the prefix
            attn_mask = bias if attn_mask is None else attn_mask + bias
        return trunk.attn_pool(x, attn_mask=attn_mask)

    def pool(name: str) -> Callable[..., Tensor]:
        return functools.partial(run_method, trunk, name, {"attn_pool": attention})

    return {name: pool(name) for name in ("pool", "_pool") if hasattr(trunk, name)}


def _width(trunk: Any) -> int:
    return int(trunk.embed_dim)


def _prefix(trunk: Any) -> int:
    return int(trunk.num_prefix_tokens)


def _class_token(trunk: Any) -> bool:
    owner = trunk if hasattr(trunk, "cls_token") else _embed(trunk)  # NaFlex has it there
    return getattr(owner, "cls_token", None) is not None


def _reads_patches(trunk: Any) -> bool:
    return trunk.global_pool not in ("token", "") or not _class_token(trunk)


def _embed(trunk: Any) -> Any:
    return trunk.embeds if hasattr(trunk, "embeds") else trunk.patch_embed


def _images(arguments: Arguments) -> Tensor | None:
    images = arguments.get("x", arguments.get("patches"))  # NaFlex has both names
    return images if isinstance(images, Tensor) and images.dim() == 4 else None


def _grid(trunk: Any, arguments: Arguments) -> Grid:
    images = _images(arguments)
    if images is None:
        return _grid_of_patches(arguments)
    height, width = _embed(trunk).dynamic_feat_size((images.shape[-2], images.shape[-1]))
    return int(height), int(width)


def _grid_of_patches(arguments: Arguments) -> Grid:
    """Of NaFlex's patches, which say where they come from; those that pad are at the start."""
    inner = arguments.get("x")
    places = (inner if isinstance(inner, dict) else arguments).get("patch_coord")
    if not isinstance(places, Tensor) or not places.shape[1]:
        return None
    return common_grid(places.amax(dim=1) + 1)


def _size(trunk: Any) -> Size:
    """Of the images that it was made for, or else those that it was trained on."""
    embed, config = _embed(trunk), getattr(trunk, "pretrained_cfg", None) or {}
    size = getattr(embed, "img_size", None) or config.get("input_size", (0,))[1:]
    if not size and getattr(embed, "pos_embed_grid_size", None):
        size = [n * p for n, p in zip(embed.pos_embed_grid_size, embed.patch_size, strict=True)]
    if not size:
        raise ShapeError(f"{type(trunk).__name__} has no image size: create it with img_size=...")
    return int(getattr(trunk, "in_chans", 3)), int(size[0]), int(size[1])


def _padding(_: Any, arguments: Arguments) -> Tensor | None:
    images = arguments.get("x")
    if isinstance(images, dict):
        arguments = images
    valid = arguments.get("patch_valid")
    return None if valid is None else valid.bool()


def _unseen(trunk: Any, arguments: Arguments) -> Tensor | None:
    """Patches that a mask hides from all tokens are padding, unless they are read out."""
    mask, images = arguments.get("attn_mask"), _images(arguments)
    if not isinstance(mask, Tensor) or images is None or _reads_patches(trunk):
        return None
    seen = four(mask if mask.dtype == torch.bool else mask > float("-inf")).any(dim=2).any(dim=1)
    return seen[:, _prefix(trunk) :].expand(images.shape[0], -1)


def _example(trunk: Any, batch: int) -> dict[str, Any]:
    return {"x": blank_images(trunk, _size(trunk), batch)}


def _trunk(
    arguments: tuple[str, ...] = ("x",),
    padding: Callable[[Any, Arguments], Tensor | None] = no_padding,
) -> TrunkKind:
    return TrunkKind(
        blocks="blocks",
        entries=("forward", "forward_features", "forward_intermediates"),
        call=call,
        width=_width,
        prefix=_prefix,
        class_token=_class_token,
        reads_patches=_reads_patches,
        size=_size,
        arguments=arguments,
        grid=_grid,
        example=_example,
        padding=padding,
    )


TRUNKS: dict[str, TrunkKind] = {
    "timm.models.vision_transformer.VisionTransformer": _trunk(("x", "attn_mask"), _unseen),
    "timm.models.eva.Eva": _trunk(("x", "attn_mask"), _unseen),
    "timm.models.beit.Beit": _trunk(),
    "timm.models.vision_transformer_relpos.VisionTransformerRelPos": _trunk(),
    "timm.models.naflexvit.NaFlexVit": _trunk(("x", "patch_coord", "patch_valid"), _padding),
}
