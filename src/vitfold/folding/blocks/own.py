"""Attention in which another function takes the place of torch's own, and tells what it saw."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.tokens.state import Ledger, additive


class Instead(TorchFunctionMode):
    """Within it, in this thread, `function` takes the place of `scaled_dot_product_attention`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.function(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class OwnAttend(Attend):
    """Attends with a function of ours, on the queries, keys and values of the module's own code.

    wanted: whether the attention that tokens receive is wanted.
    received: `[B, n]` that attention, a mean over heads and queries, once it is there.
    calls: how often the module's code attended.
    """

    def __init__(
        self,
        ledger: Ledger,
        given: Mapping[str, Any],
        proportional: bool,
        cue: str | None,
        wanted: bool = False,
    ) -> None:
        super().__init__(ledger, given, proportional, cue)
        self.wanted = wanted
        self.received: Tensor | None = None
        self.calls = 0

    def __call__(self, attention: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        with Instead(self._function):
            out = super().__call__(attention, x, **arguments)
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
        """What comes out, and the attention received where it is wanted."""
        raise NotImplementedError


class ScoredAttend(OwnAttend):
    """Attention head by head, whose weights also say who received how much: those of one head are
    there at a time, and stay in the cache of a CPU. In half precision, where such weights come from
    rounded logits, they only say that, and the output is torch's."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        half = q.element_size() < 4
        outs, seen = [], []
        for head in range(q.shape[1]):
            added = None if bias is None else bias[:, head % bias.shape[1]]
            weights = weighed(q[:, head], k[:, head], added, scale)
            seen.append(self._received(weights))
            if not half:
                outs.append(weights @ v[:, head])
        out = (
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
            if half
            else torch.stack(outs, dim=1)
        )
        return out, torch.stack(seen).mean(dim=0)

    def _received(self, weights: Tensor) -> Tensor:
        if self.ledger.valid is None:
            return weights.mean(dim=1)
        return received(weights.unsqueeze(1), self.ledger.valid)


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
    seen = (weights * queries[:, None, :, None]).sum(dim=-2).mean(dim=1)
    return seen / queries.sum(dim=1, keepdim=True)
