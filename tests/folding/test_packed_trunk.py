"""Images of several lengths from the first block on, one after another; and grids of three axes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitfold
from vitfold import (
    LGTM,
    LTMP,
    DataError,
    Drop,
    EViT,
    MergeDrop,
    Method,
    MethodError,
    ToMe,
    ToMeAround,
    Trace,
    Ward,
)
from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.families import Family, registry
from vitfold.folding.run import Run
from vitfold.methods import Base
from vitfold.methods.learned import Learned
from vitfold.tokens.layout import Layout
from vitfold.tokens.tokenmap import DROPPED

WIDTH, HEADS, DEPTH = 24, 3, 4

LENGTHS = (17, 4, 30)


class Attention(nn.Module):
    """Rotary attention in torch's own words; it knows of no images."""

    num_heads, head_dim = HEADS, WIDTH // HEADS

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, rope: Tensor, bias: Tensor | None) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        out = F.scaled_dot_product_attention(turned(q, rope), turned(k, rope), v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def turned(x: Tensor, rope: Tensor) -> Tensor:
    """`x[B, H, n, d]`, pair by pair by the angles `rope[..., n, d / 2]`."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * rope.cos() - b * rope.sin(), a * rope.sin() + b * rope.cos()], dim=-1)


class Block(nn.Module):
    """What a trunk of packed images has: attention by `cu_seqlens`, here left to the fold."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))


def attend(block: Any, x: Tensor, attend: Any) -> Tensor:
    rope = attend.positions(attend.arguments["rope"], torch.zeros(()))
    out: Tensor = attend(block.attn, block.norm1(x), rope=rope, bias=attend.join(None, x))
    return x + out


def feed(block: Any, x: Tensor) -> Tensor:
    out: Tensor = block.mlp(block.norm2(x))
    return x + out


KIND = BlockKind(object.__new__(Family), attend, feed, ("rope",))


def trunk() -> list[Block]:
    torch.manual_seed(0)
    return [Block().double().eval() for _ in range(DEPTH)]


def tables(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Tokens and rotary angles of images of such lengths, `[1, T, ...]`."""
    generator = torch.Generator().manual_seed(1)
    total = sum(lengths)
    x = torch.randn(1, total, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randn(total, WIDTH // HEADS // 2, generator=generator, dtype=torch.float64)


def run(
    blocks: list[Block],
    method: Base,
    schedule: tuple[int, ...],
    x: Tensor,
    rope: Tensor,
    *,
    lengths: tuple[int, ...] | None = None,
    grid: tuple[int, ...] | None = None,
    learned: Learned | None = None,
) -> tuple[Tensor, Run]:
    """A call of the trunk, as its family would begin it: dense at the end."""
    tokens = x.shape[1] if lengths is None else max(lengths)
    layout = Layout(tokens, 0, grid, DEPTH, class_token=False)
    form: Any = "packed" if method.ragged else "alike"
    call = Run(method, schedule, layout, blocks, learned, form, soft=False)
    call.lengths, call.shape = lengths, "dense at the end"
    for index, block in enumerate(blocks):
        x = call.block(index, block, KIND, x, {"rope": rope})
    return x, call


def alone(blocks: list[Block], method: Base, schedule: tuple[int, ...], **options: Any) -> Any:
    """Every image of the batch by itself."""
    x, rope = tables(LENGTHS)
    pairs = zip(x.split(LENGTHS, dim=1), rope.split(LENGTHS), strict=True)
    return [run(blocks, method, schedule, *pair, **options) for pair in pairs]


FIXED: dict[str, tuple[Method, int]] = {
    "tome": (ToMe(r=3), 3),
    "ward": (Ward(r=3), 3),
    "around": (ToMeAround(r=5), 5),
    "drop": (Drop(r=2), 2),
    "nothing": (ToMe(r=0), 0),
}


@pytest.mark.parametrize(("method", "r"), FIXED.values(), ids=FIXED)
@torch.no_grad()
def test_as_many_tokens_leave_each_packed_image_as_alone(method: Method, r: int) -> None:
    """Of an image with few tokens at most half in every block."""
    blocks, (x, rope) = trunk(), tables(LENGTHS)
    together, call = run(blocks, method, (r,) * DEPTH, x, rope, lengths=LENGTHS)
    assert together.shape == x.shape
    singles = alone(blocks, method, (r,) * DEPTH)
    expected = torch.cat([out for out, _ in singles], dim=1)
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-10)
    for number in range(1, DEPTH + 1):
        wanted = [other.states[number].counts[0] for _, other in singles]
        if method == ToMeAround(r=5):
            wanted = list(LENGTHS)
        assert call.states[number].counts == wanted
    slots = call.last.whole.slot
    assert slots.shape == (3, max(LENGTHS))
    assert (slots[1, LENGTHS[1] :] == DROPPED).all()
    if method != ToMeAround(r=5):
        for image, (_, other) in enumerate(singles):
            assert torch.equal(slots[image, : LENGTHS[image]], other.last.whole.slot[0])


@pytest.mark.parametrize("cue", ["k", "x"])
@torch.no_grad()
def test_thresholds_on_packed_images(cue: str) -> None:
    blocks, (x, rope) = trunk(), tables(LENGTHS)
    method = LTMP(merge_threshold=0.3, prune_threshold=0.03, cue=cue)
    learned = method.learn(DEPTH, WIDTH).double().eval()
    none = (0,) * DEPTH
    together, call = run(blocks, method, none, x, rope, lengths=LENGTHS, learned=learned)
    singles = alone(blocks, method, none, learned=learned)
    expected = torch.cat([out for out, _ in singles], dim=1)
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-10)
    assert call.last.counts == [other.last.counts[0] for _, other in singles]
    assert call.last.counts < list(LENGTHS)
    call.form = "masked"
    with pytest.raises(MethodError, match="packed images cannot be masked"):
        call.start(x)


@torch.no_grad()
def test_images_that_are_read_reduced_stay_packed() -> None:
    blocks, (x, rope) = trunk(), tables(LENGTHS)
    layout = Layout(max(LENGTHS), 0, None, DEPTH, class_token=False)
    call = Run(ToMe(r=3), (3,) * DEPTH, layout, blocks, None, "alike", soft=False)
    call.lengths = LENGTHS
    for index, block in enumerate(blocks):
        x = call.block(index, block, KIND, x, {"rope": rope})
    assert x.shape[:2] == (1, sum(call.last.counts))
    assert call.last.unfold(x).shape[:2] == (1, sum(LENGTHS))


@pytest.mark.parametrize("method", [EViT(r=3), MergeDrop(r=3, drop=2), LGTM(r=3)], ids=str)
def test_what_takes_no_padding_takes_no_packed_images(method: Method) -> None:
    blocks, (x, rope) = trunk(), tables(LENGTHS)
    with pytest.raises(MethodError, match="cannot take packed images: use ToMe"):
        run(blocks, method, (3,) * DEPTH, x, rope, lengths=LENGTHS)


CUBE = (3, 4, 5)


def cube(batch: int = 2) -> tuple[Tensor, Tensor]:
    x, rope = tables((60 * batch,))
    return x.view(batch, 60, WIDTH), rope[:60]


@pytest.mark.parametrize("method", [ToMe(r=6), Ward(r=6), ToMeAround(r=6), Drop(r=6)], ids=str)
@torch.no_grad()
def test_a_grid_of_time_height_and_width(method: Method) -> None:
    blocks, (x, rope) = trunk(), cube()
    out, call = run(blocks, method, (6,) * DEPTH, x, rope, grid=CUBE)
    assert out.shape == x.shape
    first, *states = call.states
    trace = Trace([s.counts for s in states], [s.whole for s in states], 0, first.grid, None)
    groups = trace.groups(1)
    assert groups.shape == CUBE
    left = 54 if method == ToMeAround(r=6) else 36
    assert len(groups[groups >= 0].unique()) == trace.counts[-1][1] == left
    assert torch.equal(groups.flatten(), trace.maps[-1].slot[1])
    with pytest.raises(DataError, match="a grid of 3 x 4 x 5 has no picture"):
        trace.draw(torch.zeros(3, 8, 8))


def test_windows_of_an_image_are_refused_where_there_are_three_axes() -> None:
    blocks, (x, rope) = trunk(), cube()
    with pytest.raises(MethodError, match="a grid of 3 x 4 x 5 has none"):
        run(blocks, LGTM(r=6), (6,) * DEPTH, x, rope, grid=CUBE)


# A family.


class PackedBlock(Block):
    def forward(self, x: Tensor, cu_seqlens: Tensor, rope: Tensor) -> Tensor:
        lengths = cu_seqlens.diff().tolist()
        pairs = zip(x.split(lengths, dim=1), rope.split(lengths), strict=True)
        x = x + torch.cat([self.attn(self.norm1(a), b, None) for a, b in pairs], dim=1)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PackedTrunk(nn.Module):
    """What vision towers of language models are: images one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = WIDTH
        self.blocks = nn.ModuleList([PackedBlock() for _ in range(DEPTH)])

    def forward(self, x: Tensor, cu_seqlens: Tensor, rope: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, cu_seqlens=cu_seqlens, rope=rope)
        return x


class PackedFamily(Family):
    trunks = (PackedTrunk,)
    entries = ("forward",)
    arguments = ("x", "cu_seqlens", "rope")
    block_types = (PackedBlock,)
    block_arguments = ("cu_seqlens", "rope")
    attention_types = (Attention,)
    prefix, class_token, reads_patches = 0, False, True
    size = (3, 4, 4)

    def lengths(self, arguments: Any) -> list[int]:
        return arguments["cu_seqlens"].diff().tolist()  # type: ignore[no-any-return]

    def grid(self, arguments: Any) -> Any:
        return (4, 4)

    def attend(self, block: Any, x: Tensor, attend_: Any) -> Tensor:
        return attend(block, x, attend_)

    def feed(self, block: Any, x: Tensor) -> Tensor:
        return feed(block, x)


@torch.no_grad()
def test_a_family_says_how_long_packed_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    vitfold.register_family(PackedFamily)
    torch.manual_seed(0)
    model = PackedTrunk().double().eval()
    x, rope = tables(LENGTHS)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    dense = model(x, cu_seqlens, rope)
    vitfold.fold(model, ToMe(r=0))
    torch.testing.assert_close(model(x, cu_seqlens, rope), dense, rtol=1e-10, atol=1e-10)
    vitfold.fold(model, ToMe(r=3))
    together = model(x, cu_seqlens, rope)
    assert together.shape == x.shape
    parts = zip(x.split(LENGTHS, dim=1), rope.split(LENGTHS), LENGTHS, strict=True)
    singles = [model(a, torch.tensor([0, n]), b) for a, b, n in parts]
    torch.testing.assert_close(together, torch.cat(singles, dim=1), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(together, dense)
