"""What a folded model is measured beside: the dense model, textbook ToMe, and free slicing, the
bound that no reduction can be faster than."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.folding.blocks.capture import capture
from vitfold.folding.blocks.proxy import run
from vitfold.folding.calls import fold_of
from vitfold.folding.families import Family, find
from vitfold.folding.flops import dry_count
from vitfold.folding.fold import clone, fold_with
from vitfold.folding.inputs import Inputs
from vitfold.tokens.match import biggest_first
from vitfold.tools.halves import FirstTokens, halved, turned
from vitfold.tools.removal import removed, returns
from vitfold.tools.slicing import Slicing

DENSE, TEXTBOOK, BOUND, FOLDED = "dense", "textbook ToMe", "free slicing", "folded"

EAGER = "dense in eager torch"
"""What others are set beside where they run in another runtime."""


def candidates(ours: nn.Module, images: Inputs | None = None) -> dict[str, nn.Module]:
    """A folded model beside its dense self, textbook ToMe and free slicing: all on one set of
    weights, and all but the dense one removing the same number of tokens.

    images: what that number is a mean over, where each keeps its own.
    """
    record = fold_of(ours)
    if not record.method.ragged:  # images that do not fit, first
        dry_count(record.family.trunk, record.family.example())
    removes, back = removed(ours, images), returns(ours)
    models = {
        DENSE: clone(ours),
        TEXTBOOK: None if back else textbook(ours, removes),
        BOUND: _bound(ours, removes, back),
        FOLDED: ours,
    }
    return {name: candidate.eval() for name, candidate in models.items() if candidate is not None}


def is_whole(model: nn.Module) -> bool:
    """Whether what is around the trunk is timed with it, as the decoder of a segmenter is; such a
    model says itself that it reads patches."""
    return getattr(model, "reads_patches", False) is True


# Free slicing


def bound(model: nn.Module, images: Inputs | None = None) -> nn.Module:
    """Free slicing with the numbers of tokens of a folded model."""
    return _bound(model, removed(model, images), returns(model))


def _bound(model: nn.Module, removes: Sequence[int], back: bool) -> nn.Module:
    """Free slicing of sequences of images, or of those that blocks see."""
    if find(model).layout().within:
        return fold_with(clone(model), Slicing(), fold_of(model).schedule)
    return free_slicing(model, removes, back)


def free_slicing(model: nn.Module, removes: Sequence[int], back: bool = False) -> nn.Module:
    """The model whose blocks cut off their last tokens: what reducing cannot be faster than.

    back: whether they cut them off at once, and put them back behind what they make.
    """
    sliced = clone(model)
    trunk = find(sliced)
    tokens = trunk.layout().tokens
    for block, kind, count in zip(trunk.blocks, trunk.kinds, removes, strict=True):
        left = tokens - count
        entering = left if back else tokens
        state = FirstTokens(entering, trunk.prefix)
        forward = halved(block, kind, state, functools.partial(_cut, left))
        around = _put_back if back else _cut_padding
        block.__dict__["forward"] = functools.partial(around, forward, entering)
        tokens = tokens if back else left
    if not back:
        _pad_outputs(sliced, trunk, removes)
    for block, kind in zip(trunk.blocks, trunk.kinds, strict=True):
        block.__dict__["forward"] = turned(kind, block.__dict__["forward"])
    return sliced


def _cut(left: int, x: Tensor) -> Tensor:
    return x[:, :left]


def _cut_padding(
    forward: Callable[..., Tensor], tokens: int, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The block on its own tokens, without those that the block before was padded by."""
    return forward(x[:, :tokens], *args, **kwargs)


def _put_back(
    forward: Callable[..., Tensor], tokens: int, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    return torch.cat([forward(x[:, :tokens], *args, **kwargs), x[:, tokens:]], dim=1)


def _pad_outputs(sliced: nn.Module, trunk: Family, removes: Sequence[int]) -> None:
    """Pad what somebody else looks at to the length that it has in the dense model."""
    for block, gone in _visible(sliced, trunk, itertools.accumulate(removes)):
        forward = block.__dict__["forward"]
        block.__dict__["forward"] = functools.partial(_padded, forward, gone)


def _visible(
    sliced: nn.Module, trunk: Family, gone: Iterable[int]
) -> Iterator[tuple[nn.Module, int]]:
    """Blocks whose tokens somebody else looks at, with how many of them are gone."""
    every = list(zip(trunk.blocks, gone, strict=True))
    if is_whole(sliced):
        yield every[-1]
    elif _shows_any(sliced, trunk):
        yield from every


def _shows_any(model: nn.Module, trunk: Family) -> bool:
    """Whether a model hands out what leaves any of its blocks: a backbone of either library."""
    return type(model).__name__ == "FeatureGetterNet" or hasattr(trunk.trunk, "out_features")


def _padded(forward: Callable[..., Tensor], more: int, *args: Any, **kwargs: Any) -> Tensor:
    """As many tokens again as there were."""
    return F.pad(forward(*args, **kwargs), (0, 0, 0, more))


# Textbook ToMe


def textbook(model: nn.Module, removes: Sequence[int]) -> nn.Module | None:
    """ToMe as the paper tells it: materialized attention, every token weighed in every block.

    None for models other than timm's plain pre-norm blocks, and for dense outputs.
    """
    plain = clone(model)
    trunk = find(plain)
    if is_whole(model) or _shows_any(model, trunk):
        return None
    if any(type(block).__name__ != "Block" or not hasattr(block, "ls1") for block in trunk.blocks):
        return None
    sizes: list[Tensor] = []  # of now, while the blocks run
    for index, (block, r) in enumerate(zip(trunk.blocks, removes, strict=True)):
        place = index, index + 1 == len(trunk.blocks)
        block.__dict__["forward"] = functools.partial(_textbook, block, sizes, r, place)
    return plain


def _textbook(
    block: Any, sizes: list[Tensor], r: int, place: tuple[int, bool], x: Tensor, **arguments: Any
) -> Tensor:
    assert arguments.get("attn_mask") is None  # images are not padded here
    index, last = place
    size = sizes[0] if index else torch.ones_like(x[..., :1])
    keys: list[Tensor] = []
    overrides = {**capture(block.attn, "k", keys.append), "fused_attn": False}
    bias = size.log()[:, None, None, :, 0]
    attended = run(block.attn, "forward", overrides, block.norm1(x), attn_mask=bias)
    x = x + block.drop_path1(block.ls1(attended))
    if r:
        x, size = _merge_all(x, size, keys[0], r)
    sizes[:] = [] if last else [size]
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def _merge_all(x: Tensor, size: Tensor, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
    scores[:, 0] = float("-inf")
    best, partner = scores.max(dim=-1)
    order = biggest_first(best).unsqueeze(-1)
    leaving, stay = order[:, :r], order[:, r:].sort(dim=1).values
    target = partner.unsqueeze(-1).gather(1, leaving)

    def merge(y: Tensor) -> Tensor:
        even, odd, channels = y[:, ::2], y[:, 1::2], y.shape[-1]
        moved = even.gather(1, leaving.expand(-1, -1, channels))
        odd = odd.scatter_add(1, target.expand(-1, -1, channels), moved)
        return torch.cat([even.gather(1, stay.expand(-1, -1, channels)), odd], dim=1)

    total = merge(size)
    return merge(x * size) / total, total
