"""Attention in which another function takes the place of torch's own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.tokens.kernels import PIECE
from vitfold.tokens.modes import compiling
from vitfold.tokens.state import TokenState, additive


class Instead(TorchFunctionMode):
    """Within it, in this thread, `function` takes the place of `scaled_dot_product_attention`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.function(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def adding(bias: Tensor) -> Instead:
    """Within it, attention that takes no bias adds this one to its logits."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **others: Any
    ) -> Tensor:
        mask = bias if attn_mask is None else additive(attn_mask, q.dtype) + bias
        return F.scaled_dot_product_attention(q, k, v, mask, *args, **others)

    return Instead(attend)


class OwnAttend(Attend):
    """Attends with a function of ours, on the queries, keys and values of the module's own code.

    calls: how often that code attended.
    """

    calls = 0

    def _run(
        self, attention: nn.Module, overrides: dict[str, Any], x: Tensor, arguments: dict[str, Any]
    ) -> Tensor:
        with Instead(self._function):
            out = super()._run(attention, overrides, x, arguments)
        return self._checked(attention, out)

    def whole(self, block: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        with Instead(self._function):
            out = super().whole(block, x, **arguments)
        return self._checked(block, out)

    def _checked(self, attention: nn.Module, out: Tensor) -> Tensor:
        """`out`, if our function was called: else images would have mixed, or counted too much."""
        if not self.calls:
            raise UnsupportedModel(
                f"a {type(attention).__name__} does not attend by torch's "
                "scaled_dot_product_attention, which this method needs: say in its family, by "
                "`fused`, how it does"
            )
        return out

    def _capture(self, attention: Any) -> dict[str, Any]:
        return dict(self.family.fused(attention)) | super()._capture(attention)

    def _function(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> Tensor:
        if is_causal or others.get("enable_gqa"):
            raise UnsupportedModel("causal and grouped attention cannot be folded")
        self.calls += 1
        bias = None if attn_mask is None else additive(attn_mask, q.dtype)
        out, received = self.attend(q, k, v, bias, scale)
        if received is not None:  # a block may attend several times: what matters is the sum
            self.received = received if self.received is None else self.received + received
        return F.dropout(out, dropout_p) if dropout_p else out

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """The output of attention, and the attention received where it is needed."""
        raise NotImplementedError


class TorchAttend(OwnAttend):
    """Torch's attention, with a `watch` function that gets its queries, keys and values."""

    def __init__(
        self,
        state: TokenState,
        arguments: Mapping[str, Any],
        proportional: bool,
        cue: str | None,
        watch: Callable[[Tensor, Tensor, Tensor], None],
    ) -> None:
        super().__init__(state, arguments, proportional, cue)
        self.watch = watch

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        self.watch(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale), None


class ScoredAttend(OwnAttend):
    """Attention head by head, whose weights also say who received how much: those of one head, and
    of so many queries that they stay in the cache of a CPU, are there at a time. In half precision,
    where such weights come from rounded logits, they only say that, and the output is torch's."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        half = q.element_size() < 4
        outs, shares = [], []
        for head in range(q.shape[1]):
            added = None if bias is None else bias[:, head % bias.shape[1]]
            values = None if half else v[:, head]
            out, share = self._head(q[:, head], k[:, head], values, added, scale)
            shares.append(share)
            if out is not None:
                outs.append(out)
        out = (
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
            if half
            else torch.stack(outs, dim=1)
        )
        return out, torch.stack(shares).mean(dim=0)

    def _head(
        self, q: Tensor, k: Tensor, v: Tensor | None, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor | None, Tensor]:
        """The output of one head, `[B, n, d]` where there are values, and the attention
        received."""
        outs, total = [], []
        for start, stop in _pieces(q.shape[1], k.shape[1]):
            added = bias
            if bias is not None and bias.shape[-2] > 1:
                added = bias[:, start:stop]
            weights = weighed(q[:, start:stop], k, added, scale)
            total.append(self._received(weights, start, stop))
            if v is not None:
                outs.append(weights @ v)
        out = None if v is None else outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
        return out, total[0] if len(total) == 1 else torch.stack(total).sum(dim=0)

    def _received(self, weights: Tensor, start: int, stop: int) -> Tensor:
        """`[B, n]`: what the queries of these `weights[B, stop - start, n]` add to the mean over
        all."""
        valid = self.state.valid
        if valid is None:
            return weights.sum(dim=1) / weights.shape[2]
        queries = valid.to(weights.dtype)
        part = (weights * queries[:, start:stop, None]).sum(dim=1)
        return part / queries.sum(dim=1, keepdim=True)


def _pieces(queries: int, keys: int) -> list[tuple[int, int]]:
    """Where the pieces begin and end in which queries attend; in a graph, one for all."""
    if compiling() or queries * keys <= PIECE:
        return [(0, queries)]
    rows = max(PIECE // keys, 1)
    return [(start, min(start + rows, queries)) for start in range(0, queries, rows)]


class FirstAttend(OwnAttend):
    """Torch's attention, and one more row of it: who the first token attends to."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        row = None if bias is None else bias[..., :1, :]
        return out, logits(q[..., :1, :], k, row, scale).softmax(dim=-1).mean(dim=(1, 2))


def weighed(q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """`[M, n, n]`: the weights of `q, k[M, n, d]`, three axes, of which nothing is copied."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    added = q.new_zeros(()) if bias is None else bias.to(q.dtype)
    shape = (q.shape[0], q.shape[1], k.shape[1])
    products = torch.baddbmm(
        added.expand(shape), q, k.transpose(1, 2), beta=0 if bias is None else 1, alpha=scale
    )
    return products.softmax(dim=-1)


def logits(q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """What softmax is taken of, as torch's attention has it."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    products = (q * scale) @ k.transpose(-1, -2)
    return products if bias is None else products + bias


def received(weights: Tensor, here: Tensor) -> Tensor:
    """`[B, n]`: the mean of `weights[B, H, n, n]` over heads and the queries that are `here`."""
    queries = here.to(weights.dtype)
    total = (weights * queries[:, None, :, None]).sum(dim=-2).mean(dim=1)
    return total / queries.sum(dim=1, keepdim=True)
