"""timm's trunks: they run their blocks themselves, so that the container of blocks, and the
pooling, is overridden."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vitfold.errors import ShapeError
from vitfold.folding.blocks.names import maker
from vitfold.folding.blocks.proxy import hooked
from vitfold.folding.blocks.proxy import run as run_method
from vitfold.folding.families.base import Family
from vitfold.folding.families.common import (
    Arguments,
    Grid,
    Size,
    blank_images,
    check_ran,
    weighted,
)
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState

FEATURES = frozenset({"FeatureGetterNet", "TimmBackbone"})
"""What hands out the patches of a trunk."""

OUTPUTS = frozenset({"TimmWrapperModel", "TimmWrapperForImageClassification"})
"""What of transformers holds a trunk and reads of it what that reads out."""


class TimmFamily(Family):
    """Base of the families of timm's vision transformers.

    readers: classes whose own `forward_head`, and ways to pool, are known; those of others get
        dense tokens.
    hosts: classes of timm that hold such a trunk, and are what its registered names make.
    """

    entries: ClassVar[tuple[str, ...]] = ("forward", "forward_features", "forward_intermediates")
    attention: ClassVar = "attn"
    readers: ClassVar[frozenset[str]] = frozenset()
    hosts: ClassVar[tuple[str, ...]] = ()

    # The trunk

    @property
    def width(self) -> int:
        return int(self.trunk.embed_dim)

    @property
    def prefix(self) -> int:
        return int(self.trunk.num_prefix_tokens)

    @property
    def class_token(self) -> bool:
        return getattr(self.trunk, "cls_token", None) is not None

    @property
    def reads_patches(self) -> bool:
        return self.trunk.global_pool not in ("token", "") or not self.class_token

    @property
    def embed(self) -> Any:
        """The patch embedding module."""
        return self.trunk.patch_embed

    @property
    def settings(self) -> Mapping[str, Any]:
        """What timm knows of the checkpoint of a model: the size of its images, mean and deviation
        of their channels."""
        return getattr(self.trunk, "pretrained_cfg", None) or {}

    @property
    def size(self) -> Size:
        """Channels, height and width of the images that the model takes, or else of its training
        images."""
        size = self.sides()
        if not size:
            raise ShapeError(
                f"{type(self.trunk).__name__} has no image size: create it with img_size=..."
            )
        return int(getattr(self.trunk, "in_chans", 3)), int(size[0]), int(size[1])

    def sides(self) -> Sequence[int]:
        """Height and width of the images that the model takes, as far as they are known."""
        size = getattr(self.embed, "img_size", None) or self.settings.get("input_size", (0,))[1:]
        return tuple(size)

    def grid(self, arguments: Arguments) -> Grid:
        images = self.images(arguments)
        if images is None:
            return None
        height, width = self.embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        return int(height), int(width)

    def images(self, arguments: Arguments) -> Tensor | None:
        """The images `[B, C, H, W]` among the arguments of a call."""
        images = arguments.get("x")
        return images if isinstance(images, Tensor) and images.dim() == 4 else None

    def example(self, batch: int = 1) -> dict[str, Any]:
        return {"x": blank_images(self.trunk, self.size, batch)}

    def read_by(self, hosts: Sequence[nn.Module]) -> bool:
        return super().read_by(hosts) or any(map(_reads_features, hosts))

    def preprocessing(self) -> dict[str, Any]:
        return {name: self.settings[name] for name in ("mean", "std") if name in self.settings}

    # A call

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trunk, overrides = self.trunk, self.trunk_overrides(run)
        if method != "forward":
            run.shape = "dense" if method in self.shows else "dense at the end"
            out = run_method(trunk, method, overrides, *args, **kwargs)
            check_ran(trunk, run)
            return self.filled(out, run.last) if method == "forward_features" else out
        if self.reads_out():
            features = functools.partial(run_method, trunk, "forward_features", dict(overrides))
            overrides["forward_head"] = functools.partial(self.head, run)
        else:
            run.shape = "dense at the end"  # nobody knows what is done with its tokens
            features = functools.partial(self._dense_features, run, dict(overrides))
        overrides["forward_features"] = features
        out = run_method(trunk, "forward", overrides, *args, **kwargs)
        check_ran(trunk, run)
        return out

    def reads_out(self) -> bool:
        """Whether it is known what the trunk's forward does with its tokens."""
        return maker(type(self.trunk)) in self.readers and not hooked(self.trunk.blocks)

    def trunk_overrides(self, run: Run) -> dict[str, Any]:
        """Overrides for a method of the trunk: what it sees in place of its own attributes."""
        return {"blocks": self.chain(run)}

    def _dense_features(
        self, run: Run, overrides: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        out = run_method(self.trunk, "forward_features", overrides, *args, **kwargs)
        return self.filled(out, run.last)

    def filled(self, out: Any, state: TokenState) -> Any:
        """Dense features in which a dropped position shows the mean of normalized survivors."""
        if not state.drops:
            return out
        if isinstance(out, dict):
            return out | {"patches": self.filled(out["patches"], state)}
        return state.unfold(state.fold(out))

    def head(self, run: Run, x: Any = None, **kwargs: Any) -> Any:
        """The trunk's head on a reduced sequence: pooling weighs every token by its size."""
        trunk = self.trunk
        check_ran(trunk, run)
        state, pooling = run.last, self.pooling()
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
            first = 0 if getattr(trunk, "pool_include_prefix", False) else state.prefix
            x = weighted(x, state, first, kwargs.get("patch_valid"))
        return trunk.forward_head(x, **kwargs)

    def pooling(self) -> str:
        """How the trunk reads out: `token`, `avg`, `latent` (attention); `plain`, what may take
        fewer tokens but not weighted ones; `other`, what needs them all."""
        trunk = self.trunk
        methods = [name for name in ("forward_head", "pool", "_pool") if hasattr(trunk, name)]
        ours = {maker(type(trunk), name) for name in methods} <= self.readers
        replaced = any(name in vars(trunk) for name in methods)
        if not ours or replaced or not trunk.global_pool:
            return "other"
        pool = getattr(trunk, "attn_pool", None)
        if pool is None:
            return trunk.global_pool if trunk.global_pool in ("token", "avg") else "plain"
        if isinstance(pool, AttentionPoolLatent):
            return "latent" if pool.pos_embed is None else "other"
        return "plain"


class TimmEncoder(TimmFamily):
    """Base of the families of timm's encoders of language models: what leaves the last block is
    dense, for a projector or a pooling that knows the grid. They have no tokens but patches."""

    class_token: Any = False
    reads_patches: Any = True

    def __init__(self, trunk: Any, hosts: Sequence[nn.Module] = ()) -> None:
        owners = [getattr(module, "pretrained_cfg", None) for module in (trunk, *hosts)]
        self.checkpoint: Mapping[str, Any] = next(filter(None, owners), {})
        super().__init__(trunk, hosts)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of a classifier lie around its encoder."""
        return self.checkpoint

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return Family.call(self, method, run, args, kwargs)


def _reads_features(host: nn.Module) -> bool:
    name = type(host).__name__
    others = type(host).__module__.startswith("transformers.") and name not in OUTPUTS
    return name in FEATURES or others


def _attention_pool(trunk: Any, state: TokenState) -> dict[str, Any]:
    """Overrides with which attention pooling counts a token of size s s times."""

    def attention(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        bias = state.log_size(x)
        if bias is not None:
            bias = bias[..., -x.shape[1] :]  # the trunk may leave out the prefix
            attn_mask = bias if attn_mask is None else attn_mask + bias
        return trunk.attn_pool(x, attn_mask=attn_mask)

    def pool(name: str) -> Callable[..., Tensor]:
        return functools.partial(run_method, trunk, name, {"attn_pool": attention})

    return {name: pool(name) for name in ("pool", "_pool") if hasattr(trunk, name)}
