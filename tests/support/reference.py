"""The methods and the models, spelled out: what vitfold has to agree with.

Everything is float64, one image at a time, in loops over blocks, heads, tokens and windows, with
the whole attention matrix in hand. Nothing here knows vitfold. Of a timm model it takes the
weights, a few settings and the table of rotary positions.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""Of every layer norm."""


@dataclass(frozen=True)
class Token:
    """A token on its way through the blocks.

    members: the original positions that it stands for.
    place: the one of them that gives it its place, and its rotary position.
    """

    vector: Tensor
    members: tuple[int, ...]
    place: int

    @property
    def size(self) -> int:
        return len(self.members)


Reduce = Callable[[int, list[Token], Tensor], list[Token]]
"""What a block does between attention and MLP: `(block, tokens, cue[n, d]) -> tokens`."""


# What happens to tokens.


def merged(kept: Token, gone: Iterable[Token]) -> Token:
    """The mean of the tokens, weighted by size, at the place of the one that is kept."""
    group = [kept, *gone]
    total = torch.zeros_like(kept.vector)
    for token in group:
        total = total + token.size * token.vector
    members = tuple(member for token in group for member in token.members)
    return Token(total / len(members), members, kept.place)


def gather(tokens: list[Token], order: list[int], into: dict[int, int]) -> list[Token]:
    """The tokens at `order`, each with those that go into it."""
    return [merged(tokens[i], [tokens[a] for a in into if into[a] == i]) for i in order]


def unit(cue: Tensor) -> Tensor:
    """Rows of length one; a row that has no direction resembles nothing."""
    rows = []
    for row in cue:
        length = math.sqrt(math.fsum(float(value) ** 2 for value in row))
        good = 0 < length < math.inf
        rows.append(row / length if good else torch.zeros_like(row))
    return torch.stack(rows)


def pairs(
    cue: Tensor, first: list[int], second: list[int], r: int, sizes: list[int] | None = None
) -> dict[int, int]:
    """The `r` of `first` that most resemble one of `second`, each with that one; or that cost the
    least to merge, where sizes count.

    Among equals the earlier goes first, on both sides: `index` and `sorted` see to that.
    """
    candidates = []
    for a in first:
        likeness = (cue[second] @ cue[a]).tolist()
        if sizes is not None:
            weights = [math.sqrt(sizes[a] * sizes[b] / (sizes[a] + sizes[b])) for b in second]
            likeness = [(like - 1) * w for like, w in zip(likeness, weights, strict=True)]
        best = max(likeness)
        candidates.append((a, second[likeness.index(best)], best))
    candidates = sorted(candidates, key=lambda candidate: -candidate[2])
    return {a: b for a, b, _ in candidates[:r]}


def merge_globally(
    tokens: list[Token], cue: Tensor, prefix: int, r: int, sized: bool = False
) -> list[Token]:
    """Bipartite soft matching over the whole sequence."""
    r = min(r, (len(tokens) - prefix) // 2)
    if r == 0:
        return tokens
    even = [i for i in range(len(tokens)) if i % 2 == 0 and i >= prefix]
    odd = [i for i in range(len(tokens)) if i % 2 == 1 and i >= prefix]
    into = pairs(unit(cue), even, odd, r, [token.size for token in tokens] if sized else None)
    order = [*range(prefix), *(i for i in even if i not in into), *odd]
    return gather(tokens, order, into)


def merge_locally(
    tokens: list[Token],
    cue: Tensor,
    prefix: int,
    r: int,
    side: int,
    grid: tuple[int, int],
    location: str = "1d",
) -> list[Token]:
    """Bipartite soft matching inside every window of `side` x `side` patches."""
    rows, columns = lattice(len(tokens) - prefix, grid)
    order = lay_out(tokens, prefix, grid, columns, location)
    corners = [(y, x) for y in range(0, rows, side) for x in range(0, columns, side)]
    each, cue, into = math.ceil(r / len(corners)), unit(cue), dict[int, int]()
    for y, x in corners:
        cells = window(order, rows, columns, side, y, x)
        even = [token for token in cells[0::2] if token is not None]
        odd = [token for token in cells[1::2] if token is not None]
        if odd:
            into |= pairs(cue, even, odd, min(each, (len(even) + len(odd)) // 2))
    kept = [*range(prefix), *(i for i in order if i not in into)]
    return gather(tokens, kept, into) if into else tokens


def lattice(patches: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns for that many patches, in the proportions of the image's own grid: the
    square root of the number, rounded up, where that grid is a square."""
    height, width = grid
    rows, columns = 0, 0
    while rows * rows * width < patches * height:
        rows += 1
    while columns * columns * height < patches * width:
        columns += 1
    return rows, columns


def lay_out(
    tokens: list[Token], prefix: int, grid: tuple[int, int], columns: int, location: str
) -> list[int]:
    """The patch tokens as they lie on the lattice, row by row; ties in the order of now."""
    width, patches = grid[1], list(range(prefix, len(tokens)))

    def mean(token: int, place: Callable[[int], int]) -> Fraction:
        members = tokens[token].members
        return Fraction(sum(place(member - prefix) for member in members), len(members))

    if location == "1d":
        return sorted(patches, key=lambda token: mean(token, lambda i: i))
    by_row = sorted(patches, key=lambda token: mean(token, lambda i: i // width))
    lines = [by_row[start : start + columns] for start in range(0, len(by_row), columns)]
    lines = [sorted(line, key=lambda token: mean(token, lambda i: i % width)) for line in lines]
    return [token for line in lines for token in line]


def window(
    order: list[int], rows: int, columns: int, side: int, y: int, x: int
) -> list[int | None]:
    """What lies in the cells of one window, row by row; None for padding."""
    cells: list[int | None] = []
    for row in range(y, y + side):
        for column in range(x, x + side):
            cell = row * columns + column
            inside = row < rows and column < columns and cell < len(order)
            cells.append(order[cell] if inside else None)
    return cells


# What a method does in every block.


def tome(schedule: list[int], prefix: int) -> Reduce:
    """ToMe; with leading zeros DFE."""
    return lambda block, tokens, cue: merge_globally(tokens, cue, prefix, schedule[block])


def ward(schedule: list[int], prefix: int) -> Reduce:
    """ToMe that weighs by size."""
    return lambda block, tokens, cue: merge_globally(tokens, cue, prefix, schedule[block], True)


def drop(schedule: list[int], prefix: int) -> Reduce:
    """Every block loses the tokens with the smallest cues."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        r = min(schedule[block], (len(tokens) - prefix) // 2)
        patches = range(prefix, len(tokens))
        smallest = sorted(patches, key=lambda i: float(cue[i].square().sum().sqrt()))[:r]
        return [token for i, token in enumerate(tokens) if i not in smallest]

    return reduce


def lgtm(
    schedule: list[int],
    prefix: int,
    grid: tuple[int, int],
    skip: int,
    side: int | None = None,
    location: str = "1d",
) -> Reduce:
    """Windows that grow by one a block, from half the side of the grid; ToMe once a window would
    hold everything."""
    side = side or max(2, math.ceil(math.sqrt(grid[0] * grid[1])) // 2)

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        now = side + block - skip
        if block < skip:
            return tokens
        if now > math.sqrt(len(tokens) - prefix):
            return merge_globally(tokens, cue, prefix, schedule[block])
        return merge_locally(tokens, cue, prefix, schedule[block], now, grid, location)

    return reduce


def ramp(r: int, inflection: float, depth: int) -> list[int]:
    """From `int(r * (1 - inflection))` to `2 r - that` along a line, truncated."""
    start = int(r * (1 - inflection))
    end = 2 * r - start
    if depth == 1:
        return [start]
    return [int(start + Fraction(end - start) * i / (depth - 1)) for i in range(depth)]


def ltmp(reference: "Reference", acts: list[tuple[str, list[float]]], prefix: int) -> Reduce:
    """`("merge", thresholds)` and `("prune", thresholds)` in their order: survivors stay in theirs,
    and are even or odd by it. A merged token counts as the most attended of its group."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        scores = reference.received
        for act, thresholds in acts:
            into: dict[int, int] = {}
            if act == "merge":
                into = above(unit(cue), prefix, thresholds[block])
                keep = [i for i in range(len(tokens)) if i not in into]
            else:
                keep = attended(scores, prefix, thresholds[block])
            tokens = gather(tokens, keep, into)
            groups = [[i, *(a for a in into if into[a] == i)] for i in keep]
            scores, cue = [max(scores[i] for i in group) for group in groups], cue[keep]
        return tokens

    return reduce


def wardcut(heights: list[float], prefix: int) -> Reduce:
    """Every even token merges into the odd one that it costs the least to merge with, where that is
    less than the block's height. Survivors stay in their order."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        patches = range(prefix, len(tokens))
        even, odd = ([i for i in patches if i % 2 == rest] for rest in (0, 1))
        into: dict[int, int] = {}
        for a in even if odd else []:
            sizes = [token.size for token in tokens]
            ((_, b),) = pairs(unit(cue), [a], odd, 1, sizes).items()
            weight = math.sqrt(sizes[a] * sizes[b] / (sizes[a] + sizes[b]))
            if (1 - float(unit(cue)[a] @ unit(cue)[b])) * weight < heights[block]:
                into[a] = b
        return gather(tokens, [i for i in range(len(tokens)) if i not in into], into)

    return reduce


def mergedrop(
    reference: "Reference", merges: list[int], drops: list[int], drop_first: bool, prefix: int
) -> Reduce:
    """The most similar merge, the least attended are dropped; survivors stay in their order."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        scores = reference.received
        for act in ("drop", "merge") if drop_first else ("merge", "drop"):
            into: dict[int, int] = {}
            patches = range(prefix, len(tokens))
            if act == "merge":
                even, odd = ([i for i in patches if i % 2 == rest] for rest in (0, 1))
                r = min(merges[block], len(patches) // 2)
                into = pairs(unit(cue), even, odd, r) if r else {}
                keep = [i for i in range(len(tokens)) if i not in into]
            else:
                lost = sorted(patches, key=lambda i: scores[i])[: drops[block]]
                keep = [i for i in range(len(tokens)) if i not in lost]
            tokens = gather(tokens, keep, into)
            groups = [[i, *(a for a in into if into[a] == i)] for i in keep]
            scores, cue = [max(scores[i] for i in group) for group in groups], cue[keep]
        return tokens

    return reduce


def evit(reference: "Reference", schedule: list[int], prefix: int, fuse: bool) -> Reduce:
    """What the class token attends to most stays; the others become one, weighted by that."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        if not schedule[block]:
            return tokens
        inputs = reference.by_first
        patches = sorted(range(prefix, len(tokens)), key=lambda i: -inputs[i])
        kept = len(patches) - schedule[block] - fuse
        stay = [*range(prefix), *sorted(patches[:kept])]
        left = [tokens[i] for i in stay]
        if not fuse:
            return left
        rest = patches[kept:]
        total = math.fsum(inputs[i] for i in rest)
        vector = sum((inputs[i] / total * tokens[i].vector for i in rest), torch.zeros(()))
        members = tuple(member for i in rest for member in tokens[i].members)
        return [*left, Token(vector, members, tokens[rest[0]].place)]

    return reduce


def above(cue: Tensor, prefix: int, threshold: float) -> dict[int, int]:
    """Every even token whose best odd one is more alike than the threshold, with that one."""
    even = [i for i in range(prefix, len(cue)) if i % 2 == 0]
    odd = [i for i in range(prefix, len(cue)) if i % 2 == 1]
    into = {}
    for a in even if odd else []:
        likeness = (cue[odd] @ cue[a]).tolist()
        if max(likeness) > threshold:
            into[a] = odd[likeness.index(max(likeness))]
    return into


def attended(scores: list[float], prefix: int, threshold: float) -> list[int]:
    """The prefix, and what is above the threshold; one patch at least."""
    patches = range(prefix, len(scores))
    keep = [i for i in patches if scores[i] > threshold]
    return [*range(prefix), *(keep or [max(patches, key=lambda i: scores[i])])]


# What a model computes.


class Reference:
    """A timm VisionTransformer, VisionTransformerDistilled or Eva, dense or with a method."""

    def __init__(self, model: Any, cue: str = "k", proportional: bool = True) -> None:
        self.weights = {name: w.detach().double() for name, w in model.state_dict().items()}
        self.model = model
        self.cue = cue
        self.proportional = proportional
        self.prefix: int = model.num_prefix_tokens
        self.depth = len(model.blocks)
        self.rope = _rope(model)
        self.received: list[float] = []
        self.by_first: list[float] = []

    def logits(self, images: Tensor, reduce: Reduce | None = None) -> Tensor:
        """`[B, classes]`."""
        return torch.stack([self.read(self.run(image.double(), reduce)) for image in images])

    def run(self, image: Tensor, reduce: Reduce | None = None) -> list[Token]:
        """The tokens that leave the last block."""
        tokens = [Token(x, (i,), i) for i, x in enumerate(self.embed(image))]
        for block in range(self.depth):
            tokens, cue = self.attend(block, tokens)
            tokens = reduce(block, tokens, cue) if reduce else tokens
            tokens = self.feed(block, tokens)
        return tokens

    def embed(self, image: Tensor) -> list[Tensor]:
        """Prefix tokens and patches, with their positions."""
        position = self.weights.get("pos_embed")
        patches = list(self.patches(image))
        names = [n for n in ("cls_token", "dist_token", "reg_token") if n in self.weights]
        first = [token for name in names for token in self.weights[name][0]]
        if position is None:
            return first + patches
        if self.model.no_embed_class:
            return first + [x + p for x, p in zip(patches, position[0], strict=True)]
        return [x + p for x, p in zip(first + patches, position[0], strict=True)]

    def patches(self, image: Tensor) -> Iterable[Tensor]:
        """Every patch by itself, row by row."""
        weight = self.weights["patch_embed.proj.weight"]
        bias = self.weights["patch_embed.proj.bias"]
        height, width = weight.shape[-2:]
        for y in range(0, image.shape[1], height):
            for x in range(0, image.shape[2], width):
                patch = image[:, y : y + height, x : x + width]
                yield (weight * patch).sum(dim=(1, 2, 3)) + bias

    def attend(self, block: int, tokens: list[Token]) -> tuple[list[Token], Tensor]:
        """The first half of a block, and the cue that it shows."""
        at = f"blocks.{block}."
        x = torch.stack([token.vector for token in tokens])
        q, k, v = self.projections(block, self.norm(at + "norm1", x))
        weights = [self.attention(*pair, tokens) for pair in zip(q, k, strict=True)]
        heads = [w @ values for w, values in zip(weights, v, strict=True)]
        self.received = mean([w.mean(dim=0) for w in weights]).tolist()
        self.by_first = mean([w[0] for w in weights]).tolist()
        out = self.linear(at + "attn.proj", torch.cat(heads, dim=1))
        cues = {"k": mean(k), "q": mean(q), "v": mean(v), "x_pre": x, "x_attn": out}
        x = x + self.scaled(out, at + "ls1.gamma", at + "gamma_1")
        return self.replaced(tokens, x), cues.get(self.cue, x)

    def projections(self, block: int, x: Tensor) -> tuple[list[Tensor], ...]:
        """Queries, keys and values of every head, after their norms, before rotation."""
        at = f"blocks.{block}.attn."
        if at + "q_proj.weight" in self.weights:
            parts = [self.linear(f"{at}{name}_proj", x) for name in "qkv"]
        else:
            fused = x @ self.weights[at + "qkv.weight"].T + self.qkv_bias(at)
            parts = list(fused.chunk(3, dim=1))
        heads = self.model.blocks[block].attn.num_heads
        q, k, v = (list(part.chunk(heads, dim=1)) for part in parts)
        if at + "k_norm.weight" in self.weights:
            q = [self.norm(at + "q_norm", head) for head in q]
            k = [self.norm(at + "k_norm", head) for head in k]
        return q, k, v

    def qkv_bias(self, at: str) -> Tensor:
        if at + "qkv.bias" in self.weights:
            return self.weights[at + "qkv.bias"]
        q, v = self.weights[at + "q_bias"], self.weights[at + "v_bias"]
        return torch.cat([q, torch.zeros_like(q), v])

    def attention(self, q: Tensor, k: Tensor, tokens: list[Token]) -> Tensor:
        """How much every token of one head attends to every other: `[n, n]`, rows sum to one."""
        q, k = self.rotated(q, tokens), self.rotated(k, tokens)
        logits = q @ k.T / math.sqrt(q.shape[1])
        if self.proportional:
            logits = logits + torch.tensor([math.log(t.size) for t in tokens], dtype=q.dtype)
        weights = (logits - logits.max(dim=1, keepdim=True).values).exp()
        return weights / weights.sum(dim=1, keepdim=True)

    def rotated(self, x: Tensor, tokens: list[Token]) -> Tensor:
        """Every patch turned by the angles of its place."""
        if self.rope is None:
            return x
        rows = list(x)
        for i, token in enumerate(tokens):
            if token.place >= self.prefix:
                sin, cos = self.rope[token.place - self.prefix].chunk(2)
                rows[i] = rows[i] * cos + self.turned(rows[i]) * sin
        return torch.stack(rows)

    def turned(self, row: Tensor) -> Tensor:
        """A quarter turn of every pair of channels: neighbours, or one from each half."""
        if self.model.blocks[0].attn.rotate_half:
            first, second = row.chunk(2)
            return torch.cat([-second, first])
        return torch.stack([-row[1::2], row[0::2]], dim=1).flatten()

    def feed(self, block: int, tokens: list[Token]) -> list[Token]:
        """The second half of a block."""
        at = f"blocks.{block}."
        x = torch.stack([token.vector for token in tokens])
        out = self.mlp(at + "mlp.", self.norm(at + "norm2", x))
        return self.replaced(tokens, x + self.scaled(out, at + "ls2.gamma", at + "gamma_2"))

    def mlp(self, at: str, x: Tensor) -> Tensor:
        """Plain with GELU, or gated with SiLU: in one projection or in two."""
        if at + "fc1_g.weight" in self.weights:
            gate, x = self.linear(at + "fc1_g", x), self.linear(at + "fc1_x", x)
            x = gate * gate.sigmoid() * x
        else:
            x = self.linear(at + "fc1", x)
            if self.weights[at + "fc2.weight"].shape[1] * 2 == x.shape[1]:
                gate, x = x.chunk(2, dim=1)
                x = gate * gate.sigmoid() * x
            else:
                x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return self.linear(at + "fc2", self.norm(at + "norm", x))

    def read(self, tokens: list[Token]) -> Tensor:
        """The logits of one image: pooling counts every token as often as its size."""
        x = self.norm("norm", torch.stack([token.vector for token in tokens]))
        if "dist_token" in self.weights:
            return (self.linear("head", x[:1])[0] + self.linear("head_dist", x[1:2])[0]) / 2
        pooled = x[0] if self.model.global_pool == "token" else self.average(x, tokens)
        return self.linear("head", self.norm("fc_norm", pooled[None]))[0]

    def average(self, x: Tensor, tokens: list[Token]) -> Tensor:
        total, count = torch.zeros_like(x[0]), 0
        for row, token in zip(x[self.prefix :], tokens[self.prefix :], strict=True):
            total, count = total + token.size * row, count + token.size
        return total / count

    def replaced(self, tokens: list[Token], x: Tensor) -> list[Token]:
        return [Token(row, t.members, t.place) for row, t in zip(x, tokens, strict=True)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.weights[name + ".weight"].T
        return out + self.weights[name + ".bias"] if name + ".bias" in self.weights else out

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Layer norm over the last axis, where the model has one of that name."""
        if name + ".weight" not in self.weights:
            return x
        centered = x - x.mean(dim=-1, keepdim=True)
        deviation = (centered.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt()
        return centered / deviation * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def scaled(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = x * self.weights[name] if name in self.weights else x
        return x


def mean(heads: list[Tensor]) -> Tensor:
    """The mean over heads."""
    return torch.stack(heads).sum(dim=0) / len(heads)


def _rope(model: Any) -> Tensor | None:
    """The sines and cosines of every patch, side by side."""
    rope = getattr(model, "rope", None)
    return None if rope is None else rope.get_embed().detach().double()
