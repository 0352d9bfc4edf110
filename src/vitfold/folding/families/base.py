"""Family: one adapter class for a class of vision transformers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitfold.errors import ShapeError, UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import capture
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import full_name, maker
from vitfold.folding.blocks.proxy import Whole, whole
from vitfold.folding.families.common import (
    Arguments,
    Chain,
    Grid,
    Size,
    blank_images,
    check_depth,
    check_ran,
    links,
    pair,
)
from vitfold.folding.run import Run
from vitfold.tokens.layout import MANY, Layout
from vitfold.tokens.squares import in_squares

Types = tuple[str | type, ...]
"""Classes, or their full names `package.module.Class`, by which no library is imported early."""


class Family:
    """Everything that folding needs to know of a class of trunks: of the module that owns the
    blocks, of the blocks, and of their attention. One instance describes one trunk.

    The defaults fit a plain pre-norm vision transformer; a family overrides what differs.

    trunks: the classes of trunks; subclasses count.
    path: where a trunk keeps its blocks.
    entries: its methods that run the blocks, as far as it has them.
    shows: those among them that hand out what leaves single blocks.
    arguments: what a trunk is called with, in order.
    block_types: the classes that make the forward of a block.
    block_arguments: what a block takes besides its tokens, in order.
    axis: of the tokens in what a block takes: 1, or 0 where images lie along the second.
    tuples: how many things a block hands out in a tuple, tokens first; 0: tokens alone.
    flat: whether a block takes the tokens of all images in one row, `[T, C]`.
    feed_arguments: names of those of its arguments that the second half of a block takes too.
    attention: where a block keeps the module that attends.
    attention_types: the classes that make the forward of that, which take a bias; others are
        refused.
    """

    trunks: ClassVar[Types] = ()
    path: ClassVar[str] = "blocks"
    entries: ClassVar[tuple[str, ...]] = (
        "forward",
        "forward_features",
        "forward_intermediates",
        "get_intermediate_layers",
    )
    shows: ClassVar[tuple[str, ...]] = ("forward_intermediates", "get_intermediate_layers")
    arguments: ClassVar[tuple[str, ...]] = ("x",)
    block_types: ClassVar[Types] = ()
    block_arguments: ClassVar[tuple[str, ...]] = ()
    axis: ClassVar[int] = 1
    tuples: ClassVar[int] = 0
    flat: ClassVar[bool] = False
    feed_arguments: ClassVar[tuple[str, ...]] = ()
    attention: ClassVar[str] = "attn"
    attention_types: ClassVar[Types] = ()

    square: int = 1
    """Patches along the side of the squares that leave as one, which what follows a trunk joins."""

    def __init__(self, trunk: Any, hosts: Sequence[nn.Module] = ()) -> None:
        self.trunk = trunk
        self.hosted = self.read_by(hosts)
        self.blocks = tuple(self.find_blocks())
        self.kinds = tuple(self._known_kind(block) for block in self.blocks)
        self.methods = tuple(name for name in self.entries if hasattr(type(trunk), name))

    # The trunk

    def find_blocks(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which they run."""
        container: Any = self.trunk.get_submodule(self.path)
        blocks = tuple(container.children())
        if len(blocks) != len(container):
            raise UnsupportedModel(
                f"{full_name(type(self.trunk))} cannot be folded: it has {len(container)} blocks, "
                f"of which {len(container) - len(blocks)} occur more than once"
            )
        return blocks

    @property
    def width(self) -> int:
        """How many channels tokens have."""
        return int(self._first("embed_dim", "hidden_size", "width", "dim", of="width"))

    @property
    def prefix(self) -> int:
        """How many tokens of a sequence are not patches; they come first."""
        return int(getattr(self.trunk, "num_prefix_tokens", self.class_token))

    @property
    def suffix(self) -> int:
        """How many tokens of the prefix lie behind the patches in what blocks take; to all else
        they come first of all."""
        return 0

    @property
    def class_token(self) -> bool:
        """Whether the first token stands for the image."""
        names = ("cls_token", "class_token", "class_embedding")
        return any(getattr(self.trunk, name, None) is not None for name in names)

    @property
    def reads_patches(self) -> bool:
        """Whether the output of the trunk depends on patches one by one, not on a class token."""
        return True

    @property
    def size(self) -> Size:
        """Channels, height and width of the images that the trunk takes."""
        size = self._first("img_size", "image_size", of="size")
        return int(self._embedding().in_channels), *pair(size)

    def grid(self, arguments: Arguments) -> Grid:
        """The grid of patches of the images among the arguments of a call, where there is one."""
        images = arguments.get(self.arguments[0])
        if images is None:
            return None
        height, width = self._embedding().stride
        return int(images.shape[-2]) // height, int(images.shape[-1]) // width

    def example(self, batch: int = 1) -> dict[str, Any]:
        """Arguments of the right shapes for a call of the trunk, where its weights are."""
        return {self.arguments[0]: blank_images(self.trunk, self.size, batch)}

    def padding(self, arguments: Arguments) -> Tensor | None:
        """`[B, patches]`, False for padded patches, where a call has such arguments; else None."""
        return None

    def pixels(self, arguments: Arguments) -> Tensor | None:
        """`[B, patches, D]`: the pixels of every patch, for methods that look at them; None where
        a family does not show them."""
        return None

    def lengths(self, arguments: Arguments) -> Sequence[int] | None:
        """How many tokens each image has where a call takes images one after another, `[1, T, C]`;
        None where they lie side by side."""
        return None

    def order(self, arguments: Arguments) -> Tensor | None:
        """`[B or 1, N]`: all tokens in an order in which the patches of a square lie together;
        None where they come so."""
        grid = self.grid(arguments)
        if grid is None or len(grid) != 2 or grid == MANY:
            raise ShapeError(
                f"{type(self).__name__} does not say where squares of patches lie in such a call: "
                "define `order` in it"
            )
        device = next(self.trunk.parameters()).device
        patches = in_squares(grid, self.square, device) + self.prefix
        return torch.cat([torch.arange(self.prefix, device=device), patches]).unsqueeze(0)

    def read_by(self, hosts: Sequence[nn.Module]) -> bool:
        """Whether the modules around the trunk, from the inside out, read its patches."""
        return any(getattr(host, "reads_patches", False) is True for host in hosts)

    def preprocessing(self) -> dict[str, Any]:
        """How images are prepared, as options of `timm.data.resolve_data_config`, as far as the
        trunk states it."""
        return {}

    def _first(self, *names: str, of: str) -> Any:
        """The first of these attributes that the trunk, or its patch embedding, has."""
        for owner in (self.trunk, getattr(self.trunk, "patch_embed", None)):
            for name in names:
                if getattr(owner, name, None) is not None:
                    return getattr(owner, name)
        raise ShapeError(
            f"a {type(self.trunk).__name__} has no {' or '.join(names)}: define `{of}` in "
            f"{type(self).__name__}"
        )

    def _embedding(self) -> nn.Conv2d:
        """The convolution that embeds patches."""
        convolutions = (m for m in self.trunk.modules() if isinstance(m, nn.Conv2d))
        first = next(convolutions, None)
        if first is None:
            raise ShapeError(
                f"a {type(self.trunk).__name__} makes no patches by a convolution: define `size` "
                f"and `grid` in {type(self).__name__}"
            )
        return first

    # A call

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a method of the trunk on folded blocks: here what leaves the last one is dense, so
        that the trunk reads out as ever."""
        run.shape = "dense" if method in self.shows else "dense at the end"
        return self.run(method, run, args, kwargs)

    def run(
        self,
        method: str,
        run: Run,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        **overrides: Any,
    ) -> Any:
        """The trunk's own method, which sees folded blocks and these overrides."""
        out = getattr(self.proxy(run, **overrides), method)(*args, **kwargs)
        check_ran(self.trunk, run)
        return out

    def proxy(self, run: Run, **overrides: Any) -> Whole:
        """The trunk, with folded blocks in place of its own."""
        inner: Any = self.chain(run)
        outer, _, name = self.path.rpartition(".")
        while outer:
            inner = whole(self.trunk.get_submodule(outer), **{name: inner})
            outer, _, name = outer.rpartition(".")
        return whole(self.trunk, **({name: inner} | overrides))

    def chain(self, run: Run) -> Chain:
        """The folded blocks, in place of the container of blocks."""
        container: Any = self.trunk.get_submodule(self.path)
        check_depth(self.trunk, container, run)
        return Chain(links(list(container), run), container)

    # Blocks

    def kind(self, block: nn.Module) -> BlockKind | None:
        """How a block runs in two halves; None where it is of an unknown class."""
        if not known(block, self.block_types):
            return None
        if type(self).attend is Family.attend:
            _check_plain(self, block)
        return BlockKind(
            self,
            self.attend,
            self.feed,
            self.block_arguments,
            self.axis,
            suffix=self.suffix,
            tuples=self.tuples,
            flat=self.flat,
            feed_arguments=self.feed_arguments,
        )

    def attend(self, block: Any, x: Tensor, attend: Attend) -> Tensor:
        """The first half of a block, `x[B, N, C]` to the same: its line for attention, in which
        `attend(module, x, ...)` takes the place of `module(x, ...)`, and `attend.bias(x)` that of
        the mask. With `feed = None` it is the whole block: `attend.whole(block, x, ...)`."""
        out = attend(block.attn, block.norm1(x), attn_mask=attend.bias(x))
        return x + _scaled(block, out, "1")

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The second half of a block: its line for the MLP. It gets `feed_arguments` by name."""
        return x + _scaled(block, block.mlp(block.norm2(x)), "2")

    # Attention

    def attentions(self, block: Any) -> Sequence[nn.Module]:
        """The attention modules of a block."""
        return [block.get_submodule(self.attention)]

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        """Overrides with which a module hands `show` the queries, keys or values (`cue`: q, k or
        v) that it computes, summed over heads `[B, N, d]`."""
        return capture(attention, cue, show)

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        """Overrides of what a module computes by itself for the original tokens, such as a relative
        position bias, once tokens were reduced."""
        return {}

    def fused(self, attention: Any) -> Mapping[str, Any]:
        """Overrides with which a module calls torch's `scaled_dot_product_attention`."""
        return {"fused_attn": True} if hasattr(attention, "fused_attn") else {}

    def _known_kind(self, block: nn.Module) -> BlockKind:
        trunk, kind = full_name(type(self.trunk)), self.kind(block)
        if kind is None:
            raise UnsupportedModel(
                f"{trunk} cannot be folded: its blocks are of an unknown kind, "
                f"{full_name(type(block))}"
            )
        for attention in self.attentions(block):
            if not known(attention, self.attention_types):
                raise UnsupportedModel(
                    f"{trunk} cannot be folded: its blocks attend in an unknown way, "
                    f"{full_name(type(attention))}"
                )
        return kind

    # What follows

    @property
    def depth(self) -> int:
        """How many blocks the trunk has."""
        return len(self.blocks)

    def layout(self) -> Layout:
        """The layout for images of the size that the model takes."""
        return self.layout_of(self.grid(self.example()) or (0, 0))

    def layout_of(self, grid: Grid) -> Layout:
        """The layout for images with that grid of patches."""
        tokens = self.prefix + math.prod(grid or (0,))
        reads_patches = self.hosted or self.reads_patches
        return Layout(
            tokens,
            self.prefix,
            grid,
            self.depth,
            self.class_token,
            reads_patches,
            square=self.square,
        )


def named(types: Types) -> frozenset[str]:
    """Classes by their full names."""
    return frozenset(full_name(t) if isinstance(t, type) else t for t in types)


def known(module: nn.Module, types: Types) -> bool:
    """Whether the forward of a module is defined by one of these classes."""
    return maker(type(module)) in named(types)


PLAIN = frozenset({"norm1", "attn", "norm2", "mlp", "ls1", "ls2", "drop_path1", "drop_path2"})
"""What a block may have for the halves that a family inherits."""


def _check_plain(family: Family, block: nn.Module) -> None:
    others = [name for name, _ in block.named_children() if name not in PLAIN]
    if others:
        raise UnsupportedModel(
            f"a {type(block).__name__} has {', '.join(others)}, which the halves that "
            f"{type(family).__name__} inherits don't run: define `attend` and `feed` in it"
        )


def _scaled(block: Any, out: Tensor, half: str) -> Tensor:
    """The output of attention or MLP through the layer scale and stochastic depth of a block, where
    it has them."""
    for name in ("ls", "drop_path"):
        part = getattr(block, name + half, None)
        out = out if part is None else part(out)
    return out
