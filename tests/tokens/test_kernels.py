"""The place where other implementations of matching and folding stand, and what they have to give:
the same order and the same partners in every runtime, of tokens that are alike too."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rest import rest
from support.runtimes import (
    Runtime,
    ahead_of_time,
    compiled,
    exported,
    inductor,
    onnx_runtime,
    openvino,
    program,
)
from support.small import vit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vitfold
from vitfold import MergeDrop
from vitfold.errors import MethodError
from vitfold.folding.flops import count
from vitfold.tokens import kernels, match
from vitfold.tokens.kernels import EAGER, EXPORT, PORTABLE, Kernels, Side
from vitfold.tokens.tokenmap import TokenMap


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = dict(kernels._REGISTERED)
    yield
    kernels._REGISTERED.clear()
    kernels._REGISTERED.update(before)
    torch.compiler.reset()


# Order.


def spelled_out(values: list[float], descending: bool) -> list[int]:
    """Python's own sort is stable."""
    return sorted(range(len(values)), key=lambda i: -values[i] if descending else values[i])


each_implementation = pytest.mark.parametrize(
    "kernel", [EAGER, PORTABLE], ids=["eager", "portable"]
)


@each_implementation
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("margin", [0.0, 2.0**-19])
def test_equals_come_as_they_stand(kernel: Kernels, descending: bool, margin: float) -> None:
    inf = float("inf")
    rows = [[3.0, -inf, 3, 1, -inf, 2, inf, 1, inf], [5, 4, 3, 2, 1, 0, -1, -2, -3], [7] * 9]
    order = kernel.order(torch.tensor(rows), descending, margin, None)
    assert order.tolist() == [spelled_out(row, descending) for row in rows]


@each_implementation
def test_what_differs_by_rounding_alone_is_equal(kernel: Kernels) -> None:
    close = kernels.rounding(torch.empty(0))
    values = torch.tensor([1.0, 1 + close / 2, 0.5, 1 - close / 2, 1 + 8 * close])
    assert kernel.order(values, True, close, None).tolist() == [4, 0, 1, 3, 2]
    assert kernel.order(values, True, 0.0, None).tolist() == [4, 1, 0, 3, 2]
    assert kernels.first_highest(values[:4], values[:4].amax()).item() == 0
    assert kernels.first_highest(values, values.amax()).item() == 4
    nowhere = torch.full((3,), kernels.NOWHERE)
    assert kernels.first_highest(nowhere, nowhere.amax()).item() == 0


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("margin", [0.0, 2.0**-19])
def test_shortcuts_are_no_other_order(descending: bool, margin: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for most, cut in itertools.product((2, 3, 100, 10**6), (None, 0, 1, 7, 49, 50)):
        values = torch.randint(0, most, (2, 50), generator=generator).float()
        whole = PORTABLE.order(values, descending, margin, None)
        short = EAGER.order(values, descending, margin, cut)
        if cut is None:
            assert torch.equal(short, whole)
        else:
            before = [order[:, :cut].sort(dim=1).values for order in (short, whole)]
            assert torch.equal(*before)


@pytest.mark.parametrize("descending", [False, True])
def test_comparing_is_no_other_order_than_sorting(
    descending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    margin = kernels.rounding(torch.empty(0))
    for most in (2, 3, 100, 10**6):
        values = torch.randint(0, most, (2, 3, 50), generator=generator).float()
        values = torch.cat([values, values[..., :9] + margin / 2, values[..., :1] / 0], dim=-1)
        values = values.nan_to_num(float("-inf"), float("-inf"))
        compared = PORTABLE.order(values, descending, margin, None)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "PAIRS", 0)
            assert torch.equal(compared, PORTABLE.order(values, descending, margin, None))


# Merging.


@pytest.mark.parametrize("product", [0, kernels.PRODUCT])
@pytest.mark.parametrize("into", [[[3, 3], [0, 4]], [[3, -1], [-1, -1]]])
def test_merging_is_the_same_in_every_form(
    into: list[list[int]], product: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "PRODUCT", product)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 7, 4, generator=generator), torch.rand(2, 7, generator=generator)
    keep, gone = torch.tensor([[0, 2, 3, 5, 6]] * 2), torch.tensor([[4, 1]] * 2)
    moves = TokenMap(keep, gone, torch.tensor(into), "mixed" if -1 in into[0] else "merged")
    for ours, theirs in zip(
        PORTABLE.merge(x, weight, moves), EAGER.merge(x, weight, moves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# Runtimes.


def exact_rows(batch: int, tokens: int) -> Tensor:
    """Rows with entries of one magnitude: similarities are exact, and mostly ties."""
    signs = torch.randint(0, 2, (batch, tokens, 4), generator=torch.Generator().manual_seed(3))
    rows = signs.float() * 2 - 1
    rows[:, tokens // 3 : tokens // 2] = 1
    rows[:, -3] = 0
    return rows


class Bipartite(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        step = match.bipartite(rows, 7, 1)
        return torch.cat([step.keep, step.slot], dim=1)


class Lowest(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return match.lowest(rows.norm(dim=-1), 7, 1).keep


class Windowed(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        order = match.smallest_first(rows[:, 1:, 0].abs() + rows[:, 1:, 1])
        step = match.windowed(rows, match.Windows.cut(30, 5, 6, 3, 7), 1, order)
        return torch.cat([step.keep, step.gone, step.into], dim=1)


class Padded(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        valid = torch.arange(rows.shape[1]) < 25 + 0 * rows[:, :, 0]
        step = match.bipartite(rows, 7, 1, valid)
        return torch.cat([step.keep, step.gone, step.into], dim=1)


RUNTIMES = [exported, onnx_runtime, openvino, compiled]


@pytest.mark.parametrize("runtime", [*RUNTIMES, *rest(ahead_of_time, inductor)])
@pytest.mark.parametrize("kind", [Bipartite, Lowest, Windowed, Padded])
@pytest.mark.filterwarnings("ignore")
def test_every_runtime_breaks_ties_alike(
    kind: type[nn.Module], runtime: Runtime, tmp_path: Path
) -> None:
    module, rows = kind(), exact_rows(5, 31)
    run = runtime(module, rows[:2], tmp_path)
    assert run(rows).tolist() == module(rows).tolist()


# Other implementations.


def test_a_registered_implementation_is_used_and_may_go_again() -> None:
    model, x = vitfold.fold(vit().float(), vitfold.ToMe(r=4)), torch.randn(2, 3, 28, 28)
    calls: list[str] = []

    def take(rows: Tensor, index: Tensor) -> Tensor:
        calls.append("take")
        return EAGER.take(rows, index)

    with torch.no_grad():
        expected = model(x)
        assert kernels.register(dataclasses.replace(EAGER, take=take), "cpu") is None
        assert torch.equal(model(x), expected)
        assert calls
        assert kernels.register(None, "cpu") is not None
        calls.clear()
        model(x)
    assert not calls


def test_exported_programs_have_an_implementation_of_their_own() -> None:
    calls: list[str] = []

    def order(values: Tensor, descending: bool, margin: float, cut: int | None) -> Tensor:
        calls.append("order")
        return PORTABLE.order(values, descending, margin, cut)

    mine = dataclasses.replace(PORTABLE, order=order)
    assert kernels.register(mine, EXPORT) is PORTABLE
    Bipartite()(exact_rows(2, 31))
    assert not calls
    program(Bipartite(), exact_rows(2, 31))
    assert calls
    kernels.register(None, EXPORT)
    assert kernels._REGISTERED[EXPORT] is PORTABLE


@torch.library.custom_op("vitfold_test::similar", mutates_args=())
def similar(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.transpose(-1, -2)


@similar.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-2])


def test_what_an_operator_costs_is_counted() -> None:
    def nearest(a: Side, b: Side) -> kernels.Nearest:
        scores = similar(a.rows, b.rows)
        return kernels.Nearest(scores.amax(dim=-1), EAGER.nearest(a, b).partner)

    def cost(a: tuple[int, ...], b: tuple[int, ...], **_: Any) -> int:
        return 10**9

    op = torch.ops.vitfold_test.similar
    rows = exact_rows(1, 31)
    before = count(lambda: match.bipartite(rows, 7, 1))
    mine: Kernels = dataclasses.replace(EAGER, nearest=nearest, flops={op: cost})
    kernels.register(mine, "cpu")
    assert count(lambda: match.bipartite(rows, 7, 1)) == 10**9 + before


# Memory.


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made within it."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.most = max(self.most, tensor.numel())
        return out


@pytest.mark.parametrize("sized", [False, True])
def test_scores_of_many_tokens_are_never_there_at_once(sized: bool) -> None:
    tokens = 4097
    rows = torch.randn(1, tokens, 16, generator=torch.Generator().manual_seed(0))
    size = torch.ones(1, tokens) if sized else None
    with Largest() as visits:
        step = match.bipartite(rows, 50, 1, None, size)
    assert (tokens // 2) ** 2 > 4 * kernels.PIECE - 4 * tokens
    assert visits.most <= kernels.PIECE
    kernels.register(dataclasses.replace(EAGER, nearest=PORTABLE.nearest), "cpu")
    assert torch.equal(step.slot, match.bipartite(rows, 50, 1, None, size).slot)


def test_attention_received_is_added_up_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitfold.folding.blocks import own

    model: Any = vitfold.fold(vit().double(), MergeDrop(r=4, drop=3))
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(own, "PIECE", 300)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert [stop - start for start, stop in own._pieces(50, 50)] == [6] * 8 + [2]


# Half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "method",
    [vitfold.ToMe(r=4), vitfold.Ward(r=4), vitfold.LGTM(r=4, skip=0), MergeDrop(r=3, drop=1)],
    ids=str,
)
def test_an_image_in_half_precision_is_what_it_is_in_a_batch(
    method: vitfold.Method, dtype: torch.dtype
) -> None:
    model: Any = vit((8, 8), depth=12, embed_dim=64, num_heads=2).to(dtype)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        dense = (model(x) - torch.cat([model(one) for one in x.split(1)])).abs().max()
        vitfold.fold(model, method)
        alone = torch.cat([model(one) for one in x.split(1)])
        assert (model(x) - alone).abs().max() <= dense


# Options.


def test_mergedrop_has_a_hash_and_refuses_what_is_no_switch() -> None:
    assert hash(MergeDrop(r=2, drop=[1])) == hash(MergeDrop(r=2, drop=[1]))
    with pytest.raises(MethodError, match="drop_first='no': expected True or False"):
        MergeDrop(r=2, drop_first="no")  # type: ignore[arg-type]
