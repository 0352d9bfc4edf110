"""A folded model beside the dense one, textbook ToMe and the free-slicing bound."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import MethodError
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.capture import capture
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import by_name
from vitfold.folding.blocks.proxy import run
from vitfold.folding.calls import fold_of
from vitfold.folding.families import Family, find
from vitfold.folding.flops import dry_count
from vitfold.folding.fold import clone
from vitfold.folding.inputs import Inputs
from vitfold.methods.schedule import whole
from vitfold.methods.steps import Act, Look, Plan, Step, Weave
from vitfold.tokens.match import biggest_first
from vitfold.tokens.modes import evaluating
from vitfold.tokens.state import Ledger
from vitfold.tools.measure import Progress, Throughput, batch_of, compare, flops, peak_memory
from vitfold.tools.trace import trace

DENSE, TEXTBOOK, BOUND, FOLDED = "dense", "textbook ToMe", "free slicing", "folded"


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size.

    share: the time of free slicing over its own: 1 is as fast as removing tokens can be.
    speedup: the time of the dense model over its own.
    """

    name: str
    batch_size: int
    images_per_second: float
    low: float
    high: float
    gflops: float
    memory_mb: float
    speedup: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """By field name."""
        return asdict(self)


def removed(model: nn.Module, images: Inputs | None = None) -> tuple[int, ...]:
    """How many tokens leave every block of a folded model, or go around it, for images of its own
    size; where each image keeps its own number, on average over `images`."""
    if fold_of(model).method.ragged:
        return _removed_on_average(model, images)
    return tuple(_spared(step) for step in _plan(model))


def _plan(model: nn.Module) -> Plan:
    record = fold_of(model)
    layout = record.family.layout()
    if record.learned is not None:
        return record.learned.plan(layout, record.schedule)
    return record.method.plan(layout, record.schedule)


def _spared(step: Step | Weave | Look | Act | None) -> int:
    """How many tokens a block need not feed forward."""
    if isinstance(step, Weave):
        return len(step.groups) - len(step.seats)
    return step.removes if isinstance(step, Step) else 0


def _returns(model: nn.Module) -> bool:
    """Whether tokens come back after a block of a folded model."""
    ragged = fold_of(model).method.ragged
    return not ragged and any(isinstance(step, Weave) for step in _plan(model))


def bound(model: nn.Module, images: Inputs | None = None) -> nn.Module:
    """Free slicing with the numbers of tokens of a folded model."""
    return free_slicing(model, removed(model, images), _returns(model))


def measured(model: nn.Module) -> nn.Module:
    """What of a model is timed: the vision transformer, or a whole segmenter."""
    if _is_whole(model):
        return model
    trunk: nn.Module = find(model).trunk
    return trunk


def _is_whole(model: nn.Module) -> bool:
    """Whether what is around the trunk is timed with it, as the decoder of a segmenter is; such a
    model says itself that it reads patches."""
    return getattr(model, "reads_patches", False) is True


def _removed_on_average(model: nn.Module, images: Inputs | None) -> tuple[int, ...]:
    method = fold_of(model).method
    if images is None:
        raise MethodError(f"{method} keeps another number of tokens for every image: give images")
    with evaluating(model):
        traced = trace(model, images)
    counts = [[traced.maps[0].tokens] * batch_of(images), *traced.counts]
    means = [sum(numbers) / len(numbers) for numbers in counts]
    return tuple(whole(before - after for before, after in itertools.pairwise(means)))


def free_slicing(model: nn.Module, removes: Sequence[int], returns: bool = False) -> nn.Module:
    """The model whose blocks cut off their last tokens: what reducing cannot be faster than.

    returns: whether they cut them off at once, and put them back behind what they make.
    """
    sliced = clone(model)
    found = find(sliced)
    tokens = found.layout().tokens
    for block, kind, count in zip(found.blocks, found.kinds, removes, strict=True):
        left = tokens - count
        books = _Cut(left if returns else tokens, found.prefix)
        cut = _spared_from if returns else _sliced
        block.__dict__["forward"] = functools.partial(cut, block, kind, books, left)
        tokens = tokens if returns else left
    if not returns:
        for block, left in _shown(sliced, found, itertools.accumulate(removes)):
            forward = block.__dict__["forward"]
            block.__dict__["forward"] = functools.partial(_padded, forward, left)
    return sliced


def _shown(
    sliced: nn.Module, found: Family, gone: Iterable[int]
) -> Iterator[tuple[nn.Module, int]]:
    """Blocks whose tokens somebody else looks at, with how many of them are gone."""
    every = list(zip(found.blocks, gone, strict=True))
    if _is_whole(sliced):
        yield every[-1]
    elif _shows_any(sliced, found):
        yield from every


def _shows_any(model: nn.Module, found: Family) -> bool:
    """Whether a model hands out what leaves any of its blocks: a backbone of either library."""
    return type(model).__name__ == "FeatureGetterNet" or hasattr(found.trunk, "out_features")


def _padded(forward: Callable[..., Tensor], more: int, *args: Any, **kwargs: Any) -> Tensor:
    """As many tokens again as there were."""
    return F.pad(forward(*args, **kwargs), (0, 0, 0, more))


def _sliced(
    block: nn.Module, kind: BlockKind, cut: "_Cut", left: int, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    given = by_name(kind.arguments, args, kwargs)
    x = kind.turned(x)[:, : cut.tokens]  # what was padded is not theirs
    x = kind.attend(block, x, Attend(cut, given, False, None))
    x = x[:, :left]
    return kind.turned(kind.feed(block, x) if kind.feed else x)


def _spared_from(
    block: nn.Module, kind: BlockKind, cut: "_Cut", left: int, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    return torch.cat(
        [_sliced(block, kind, cut, left, x[:, :left], *args, **kwargs), x[:, left:]], dim=1
    )


class _Cut(Ledger):
    """The books of tokens that are the first ones of the original sequence."""

    def __init__(self, tokens: int, prefix: int) -> None:
        super().__init__(tokens, prefix, origin=torch.empty(1, tokens, device="meta"))

    def mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if mask is None else mask[..., : self.tokens, : self.tokens]

    def positions(self, table: Tensor) -> Tensor:
        return table[..., : self.tokens - self.prefix, :]


def textbook(model: nn.Module, removes: Sequence[int]) -> nn.Module | None:
    """ToMe as the paper tells it: materialized attention, every token weighed in every block.

    None for models other than timm's plain pre-norm blocks, and for dense outputs.
    """
    plain = clone(model)
    found = find(plain)
    if _is_whole(model) or _shows_any(model, found):
        return None
    if any(type(block).__name__ != "Block" or not hasattr(block, "ls1") for block in found.blocks):
        return None
    sizes: list[Tensor] = []  # of now, while the blocks run
    for index, (block, r) in enumerate(zip(found.blocks, removes, strict=True)):
        place = index, index + 1 == len(found.blocks)
        block.__dict__["forward"] = functools.partial(_textbook, block, sizes, r, place)
    return plain


def _textbook(
    block: Any, sizes: list[Tensor], r: int, place: tuple[int, bool], x: Tensor, **given: Any
) -> Tensor:
    assert given.get("attn_mask") is None  # images are not padded here
    index, last = place
    size = sizes[0] if index else torch.ones_like(x[..., :1])
    keys: list[Tensor] = []
    parts = {**capture(block.attn, "k", keys.append), "fused_attn": False}
    bias = size.log()[:, None, None, :, 0]
    attended = run(block.attn, "forward", parts, block.norm1(x), attn_mask=bias)
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
    merged, stay = order[:, :r], order[:, r:].sort(dim=1).values
    target = partner.unsqueeze(-1).gather(1, merged)

    def merge(y: Tensor) -> Tensor:
        even, odd, channels = y[:, ::2], y[:, 1::2], y.shape[-1]
        moved = even.gather(1, merged.expand(-1, -1, channels))
        odd = odd.scatter_add(1, target.expand(-1, -1, channels), moved)
        return torch.cat([even.gather(1, stay.expand(-1, -1, channels)), odd], dim=1)

    total = merge(size)
    return merge(x * size) / total, total


def candidates(ours: nn.Module, images: Inputs | None = None) -> dict[str, nn.Module]:
    """A folded model beside its dense self, textbook ToMe and free slicing: all on one set of
    weights, and all but the dense one removing the same number of tokens.

    images: what that number is a mean over, where each keeps its own.
    """
    record = fold_of(ours)
    if not record.method.ragged:  # images that do not fit, first
        dry_count(record.family.trunk, record.family.example())
    removes, back = removed(ours, images), _returns(ours)
    named = {
        DENSE: clone(ours),
        TEXTBOOK: None if back else textbook(ours, removes),
        BOUND: free_slicing(ours, removes, back),
        FOLDED: ours,
    }
    return {name: candidate.eval() for name, candidate in named.items() if candidate is not None}


def bench(
    models: Mapping[str, nn.Module],
    images: Inputs,
    *,
    repeats: int = 10,
    warmup: int = 2,
    progress: Progress = lambda: None,
) -> list[Row]:
    """Every candidate on one batch, measured in turn."""
    rates = compare(models, images, repeats=repeats, warmup=warmup, progress=progress)
    return [_row(name, models[name], images, rates) for name in rates]


def _row(name: str, model: nn.Module, images: Inputs, rates: Mapping[str, Throughput]) -> Row:
    rate = rates[name]
    batch = batch_of(images)
    return Row(
        name=name,
        batch_size=batch,
        images_per_second=rate.median,
        low=rate.low,
        high=rate.high,
        gflops=flops(model, images) / batch / 1e9,
        memory_mb=peak_memory(model, images) / 1e6,
        speedup=rate.median / rates[DENSE].median,
        share=rate.median / rates[BOUND].median,
    )


def warning(rows: Sequence[Row]) -> str | None:
    """In words, when the folded model is not faster than the dense one here."""
    slow = [row for row in rows if row.name == FOLDED and row.speedup < 1]
    if not slow:
        return None
    sizes = ", ".join(str(row.batch_size) for row in slow)
    return (
        f"slower than the dense model here at batch size {sizes}: "
        "remove more tokens, or use larger images or batches"
    )
