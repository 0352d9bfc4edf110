"""timm's trunks. Their own forward runs; only the list of blocks, and the pooling, is replaced."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from timm.layers import AttentionPoolLatent
from torch import Tensor

from vitfold.blocks.standin import run as run_method
from vitfold.families.trunks import Arguments, Grid, Size, Trunk, blank_images, no_padding
from vitfold.ledger import Ledger
from vitfold.run import Run

Link = Callable[..., Tensor]


class Chain:
    """The blocks of one forward pass, in place of a trunk's list of blocks."""

    def __init__(self, links: list[Link]) -> None:
        self.links = links

    def __len__(self) -> int:
        return len(self.links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    def __getitem__(self, index: Any) -> Any:
        return Chain(self.links[index]) if isinstance(index, slice) else self.links[index]

    def __call__(self, x: Tensor) -> Tensor:
        for link in self.links:
            x = link(x)
        return x


def call(
    trunk: Any, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a method of the trunk on the folded blocks."""
    blocks = Chain([functools.partial(block, vitfold=run) for block in trunk.blocks])
    if method != "forward":
        run.shape = "dense" if method == "forward_intermediates" else "dense at the end"
        return run_method(trunk, method, {"blocks": blocks}, *args, **kwargs)
    parts = {
        "forward_features": functools.partial(
            run_method, trunk, "forward_features", {"blocks": blocks}
        ),
        "forward_head": functools.partial(_head, trunk, run),
    }
    return run_method(trunk, "forward", parts, *args, **kwargs)


def _head(trunk: Any, run: Run, x: Any = None, **kwargs: Any) -> Any:
    """The trunk's head on a reduced sequence: pooling weighs every token by its size."""
    ledger = run.last
    if x is None:  # NaFlex passes its features by name
        x = kwargs.pop("patches")
    if not ledger.maps or trunk.global_pool == "token" and _pools_plainly(trunk):
        return type(trunk).forward_head(trunk, x, **kwargs)
    if trunk.global_pool == "avg" and ledger.valid is None and _pools_plainly(trunk):
        return type(trunk).forward_head(trunk, _weighted(trunk, x, ledger), **kwargs)
    if _pools_by_attention(trunk) and ledger.valid is None:
        return run_method(trunk, "forward_head", _attention_pool(trunk, ledger), x, **kwargs)
    return type(trunk).forward_head(trunk, ledger.unfold(x), **kwargs)


def _pools_plainly(trunk: Any) -> bool:
    return getattr(trunk, "attn_pool", None) is None


def _pools_by_attention(trunk: Any) -> bool:
    pool = getattr(trunk, "attn_pool", None)
    return isinstance(pool, AttentionPoolLatent) and pool.pos_embed is None


def _weighted(trunk: Any, x: Tensor, ledger: Ledger) -> Tensor:
    """`x` scaled so that its plain mean is the mean weighted by size."""
    if ledger.size is None:
        return x
    first = 0 if getattr(trunk, "pool_include_prefix", False) else ledger.prefix
    pooled = ledger.size[:, first:]
    weight = ledger.size * (pooled.shape[1] / pooled.sum(dim=1, keepdim=True))
    return x * weight.unsqueeze(-1).to(x.dtype)


def _attention_pool(trunk: Any, ledger: Ledger) -> dict[str, Any]:
    """Parts with which attention pooling counts a token of size s s times."""

    def attention(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        bias = ledger.log_size(x)
        bias = None if bias is None else bias[..., -x.shape[1] :]
        return trunk.attn_pool(x, attn_mask=bias)  # type: ignore[no-any-return]

    def pool(name: str) -> Callable[..., Tensor]:
        return functools.partial(run_method, trunk, name, {"attn_pool": attention})

    return {name: pool(name) for name in ("pool", "_pool") if hasattr(trunk, name)}


def _prefix(trunk: Any) -> int:
    return int(trunk.num_prefix_tokens)


def _embed(trunk: Any) -> Any:
    return trunk.embeds if hasattr(trunk, "embeds") else trunk.patch_embed


def _images(arguments: Arguments) -> Tensor | None:
    images = arguments.get("x")
    return images if isinstance(images, Tensor) and images.dim() == 4 else None


def _grid(trunk: Any, arguments: Arguments) -> Grid:
    images = _images(arguments)
    if images is None:
        return None
    height, width = _embed(trunk).dynamic_feat_size((images.shape[-2], images.shape[-1]))
    return int(height), int(width)


def _size(trunk: Any) -> Size:
    embed = _embed(trunk)
    size = getattr(embed, "img_size", None) or trunk.pretrained_cfg["input_size"][-2:]
    channels = getattr(trunk, "in_chans", None) or trunk.pretrained_cfg["input_size"][0]
    return int(channels), int(size[0]), int(size[1])


def _padding(arguments: Arguments) -> Tensor | None:
    images = arguments.get("x")
    if isinstance(images, dict):
        arguments = images
    valid = arguments.get("patch_valid")
    return None if valid is None else valid.bool()


def _example(trunk: Any, batch: int) -> dict[str, Any]:
    return {"x": blank_images(trunk, _size(trunk), batch)}


def _trunk(
    arguments: tuple[str, ...] = ("x",),
    padding: Callable[[Arguments], Tensor | None] = no_padding,
) -> Trunk:
    entries = ("forward", "forward_features", "forward_intermediates")
    return Trunk(
        "timm", "blocks", entries, call, _prefix, _size, arguments, _grid, _example, padding
    )


TRUNKS: dict[str, Trunk] = {
    "timm.models.vision_transformer.VisionTransformer": _trunk(),
    "timm.models.eva.Eva": _trunk(),
    "timm.models.beit.Beit": _trunk(),
    "timm.models.vision_transformer_relpos.VisionTransformerRelPos": _trunk(),
    "timm.models.naflexvit.NaFlexVit": _trunk(("x", "patch_coord", "patch_valid"), _padding),
}
