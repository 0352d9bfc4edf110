"""PiToMe, MCTF and DiffRate: what others' papers merge and drop, spelled out beside them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference import Reduce, Reference, Token, gather, unit
from support.rest import rest
from support.small import MODELS, images, vit
from torch import Tensor

import vitfold
from vitfold import MCTF, DiffRate, Method, MethodError, PiToMe
from vitfold.folding.calls import fold_of, watch
from vitfold.tokens import energy
from vitfold.tokens.energy import energies, redundant
from vitfold.tokens.match import bipartite, joining
from vitfold.tokens.tokenmap import DROPPED

DEPTH = 4
NUMBERS = [3, 0, 9, 14]
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4}
PEERS: list[Method] = [
    PiToMe(r=NUMBERS),
    MCTF(r=NUMBERS),
    DiffRate(r=NUMBERS),
    DiffRate(r=NUMBERS, dropped=0.0),
    DiffRate(r=NUMBERS, dropped=1.0),
]
each_peer = pytest.mark.parametrize("method", PEERS, ids=str)
each_model = pytest.mark.parametrize("name", MODELS)


def best_of(cue: Tensor, token: int, among: list[int]) -> int:
    """What a token resembles most among others; the first of equals."""
    likeness = (cue[among] @ cue[token]).tolist()
    return among[likeness.index(max(likeness))]


def in_place(tokens: list[Token], into: dict[int, int], lost: list[int]) -> list[Token]:
    """Groups, in the order of the tokens that stay."""
    stay = [i for i in range(len(tokens)) if i not in into and i not in lost]
    return gather(tokens, stay, into)


def pitome(prefix: int, depth: int) -> Reduce:
    """Tokens of the highest energy merge, every second one into what it resembles most."""

    def energy_of(cue: Tensor, token: int, others: list[int], margin: float) -> float:
        cosines = [float(cue[token] @ cue[other]) for other in others]
        return math.fsum(c if c >= margin else math.exp(c - margin) - 1 for c in cosines)

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        margin, cue = 0.9 - 0.9 * block / depth, unit(cue)
        patches = list(range(prefix, len(tokens)))
        r = min(NUMBERS[block], len(patches) // 2)
        rank = {i: energy_of(cue, i, [j for j in patches if j != i], margin) for i in patches}
        crowd = sorted(patches, key=lambda i: -rank[i])[: 2 * r]
        into = {a: best_of(cue, a, crowd[1::2]) for a in crowd[0::2]}
        return in_place(tokens, into, [])

    return reduce


def mctf(reference: Reference, prefix: int) -> Reduce:
    """Pairs of an even and an odd token by three criteria; means by attention times size."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        cue, seen = unit(cue), reference.received
        even, odd = ([i for i in range(prefix, len(tokens)) if i % 2 == rest] for rest in (0, 1))
        r = min(NUMBERS[block], (len(tokens) - prefix) // 2)

        def worth(a: int, b: int) -> float:
            sizes = tokens[a].size * tokens[b].size
            alike = (1 + float(cue[a] @ cue[b])) / 2
            return alike * (seen[a] * seen[b]) ** -0.05 * sizes**-0.025

        best = {a: max(odd, key=lambda b: worth(a, b)) for a in even}
        into = {a: best[a] for a in sorted(even, key=lambda a: -worth(a, best[a]))[:r]}
        order = [*range(prefix), *(i for i in even if i not in into), *odd]
        order = order if r else list(range(len(tokens)))
        return [mixed(tokens, seen, i, [a for a in into if into[a] == i]) for i in order]

    return reduce


def mixed(tokens: list[Token], seen: list[float], kept: int, gone: list[int]) -> Token:
    """The mean of a group by attention times size."""
    if not gone:
        return tokens[kept]
    group = [kept, *gone]
    weights = [seen[i] * tokens[i].size for i in group]
    total = torch.zeros_like(tokens[kept].vector)
    for i, weight in zip(group, weights, strict=True):
        total = total + weight / math.fsum(weights) * tokens[i].vector
    members = tuple(member for i in group for member in tokens[i].members)
    return Token(total, members, tokens[kept].place)


def diffrate(reference: Reference, prefix: int, dropped: float) -> Reduce:
    """The least attended by the class token are dropped, the next merge."""

    def reduce(block: int, tokens: list[Token], cue: Tensor) -> list[Token]:
        cue, patches = unit(cue), range(prefix, len(tokens))
        r = min(NUMBERS[block], len(patches) // 2)
        rank = sorted(patches, key=lambda i: -reference.by_first[i])
        stay, rest = rank[: len(rank) - r], rank[len(rank) - r :]
        merges = r - int(r * dropped)
        into = {a: best_of(cue, a, stay) for a in rest[:merges]}
        return in_place(tokens, into, rest[merges:])

    return reduce


def reduction(method: Method, reference: Reference) -> Reduce:
    """What the method does, spelled out."""
    if isinstance(method, DiffRate):
        return diffrate(reference, reference.prefix, method.dropped)
    if isinstance(method, MCTF):
        return mctf(reference, reference.prefix)
    return pitome(reference.prefix, reference.depth)


@each_model
@each_peer
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@torch.no_grad()
def test_they_are_as_the_reference_has_them(name: str, method: Method, dtype: torch.dtype) -> None:
    model: Any = MODELS[name](depth=DEPTH).to(dtype)
    x = images(model, dtype=dtype)
    reference = Reference(model)
    reduce, dense = reduction(method, reference), model(x)
    slots = []
    for image in x:
        left = reference.run(image.double(), reduce)
        slot = {member: i for i, token in enumerate(left) for member in token.members}
        slots.append([slot.get(token, DROPPED) for token in range(49 + reference.prefix)])
    with watch() as runs:
        logits = vitfold.fold(model, method)(x)
    assert runs[0].last.whole.slot.tolist() == slots
    expected = reference.logits(x, reduce)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=CLOSE[dtype])
    assert not torch.allclose(dense.double(), expected, atol=1e-3)


@pytest.mark.parametrize(
    "method",
    [PEERS[1], *rest(*PEERS[::2])],
    ids=str,
)
@torch.no_grad()
def test_they_compile_export_and_come_back(method: Method, tmp_path: Path) -> None:
    model: Any = vitfold.fold(vit(depth=DEPTH).float(), method)
    x = images(model, 5, dtype=torch.float32)
    some = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(model, (x[:3],), dynamic_shapes=({0: some},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for other in (program, compiled):
        torch.testing.assert_close(other(x), model(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2], atol=1e-5, rtol=1e-5)
    vitfold.save(model, tmp_path)
    fresh = vitfold.load(tmp_path, vit(depth=DEPTH).float())
    assert fold_of(fresh).method == method
    assert torch.equal(fresh(x), model(x))


@each_peer
def test_outputs_stay_dense_and_gradients_flow(method: Method) -> None:
    model: Any = vitfold.fold(vit(depth=DEPTH).float(), method)
    x = images(model, dtype=torch.float32)
    assert model.forward_features(x).shape == vit(depth=DEPTH).float().forward_features(x).shape
    model.train()
    model(x).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("kind", [PiToMe, MCTF, DiffRate])
def test_a_share_is_reached(kind: type[Method]) -> None:
    model: Any = vit(grid=(8, 8), depth=6).float()
    x = images(model, 1, dtype=torch.float32)
    whole = vitfold.flops(model, x)
    vitfold.fold(model, kind(flops=0.7))
    assert vitfold.flops(model, x) / whole == pytest.approx(0.7, abs=0.01)


def test_energy_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.nn.functional.normalize(torch.randn(2, 37, 8, dtype=torch.float64), dim=-1)
    whole = energies(rows, 0.3)
    monkeypatch.setattr(energy, "PIECE", 100)
    torch.testing.assert_close(energies(rows, 0.3), whole)


def test_what_stands_out_is_protected() -> None:
    """Two tokens of a small group stay, though nothing is as alike: a crowd is elsewhere."""
    noise = torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(0))
    metric = torch.eye(6)[[0] * 12] + 0.2 * noise
    metric[:, 3] = metric[:, 8] = torch.eye(6)[1]
    slots = redundant(metric, 5, 0, 0.9).slot[0].tolist()
    assert slots.count(slots[3]) == slots.count(slots[8]) == 1
    assert bipartite(metric, 5, 0).slot[0, 8] == bipartite(metric, 5, 0).slot[0, 3]


def test_tokens_join_others_or_nothing() -> None:
    whole = joining(torch.tensor([[1, 4]]), torch.tensor([[3, -1]]), 5, "mixed")
    assert whole.slot.tolist() == [[0, 2, 1, 2, -1]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffRate(r=3, dropped=1.5), "dropped=1.5"),
        (lambda: vitfold.fold(vit(class_token=False, global_pool="avg"), DiffRate(r=3)), "class"),
        (lambda: PiToMe(r=3, skip=-1), "skip=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        make()
