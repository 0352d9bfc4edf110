"""timm's `Cait`: heads that talk before and after the softmax, over patches alone; then a class
token that attends to them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.kinds import Block
from vitfold.folding.blocks.names import full_name
from vitfold.folding.blocks.own import adding
from vitfold.folding.blocks.proxy import call
from vitfold.folding.blocks.proxy import run as run_method
from vitfold.folding.families.base import known
from vitfold.folding.families.common import weighted
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm import TimmFamily
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState

CAIT = "timm.models.cait."

CLASS_BLOCKS = (CAIT + "LayerScaleBlockClassAttn",)
CLASS_ATTENTION = (CAIT + "ClassAttn",)


@register_family
class TimmCait(TimmFamily):
    """timm's CaiT. The class token comes after the blocks that fold: it attends to what is left of
    the patches, each as often as its size."""

    trunks: ClassVar[tuple[str, ...]] = (CAIT + "Cait",)
    readers: ClassVar = frozenset({CAIT + "Cait"})
    block_types: ClassVar[tuple[str, ...]] = (CAIT + "LayerScaleBlock",)
    attention_types: ClassVar[tuple[str, ...]] = (CAIT + "TalkingHeadAttn",)
    prefix: Any = 0
    class_token: Any = False
    reads_patches: Any = True

    def __init__(self, trunk: Any, hosts: Sequence[nn.Module] = ()) -> None:
        super().__init__(trunk, hosts)
        for block in trunk.blocks_token_only or ():
            if not (known(block, CLASS_BLOCKS) and known(block.attn, CLASS_ATTENTION)):
                raise UnsupportedModel(
                    f"{full_name(type(trunk))} cannot be folded: its class token attends in an "
                    f"unknown way, {full_name(type(block))}"
                )

    # A call

    def trunk_overrides(self, run: Run) -> dict[str, Any]:
        return super().trunk_overrides(run) | {"forward_cls": functools.partial(self._class, run)}

    def _class(self, run: Run, x: Tensor) -> Tensor:
        """The class token, and the patches that it attended to: those that are left, or dense where
        someone looks at them."""
        trunk: Any = self.trunk
        if not run.last.changed:
            return trunk.forward_cls(x)
        x, state = run.last.align(x)
        blocks = [_sized(block, state) for block in trunk.blocks_token_only]
        out: Tensor = run_method(trunk, "forward_cls", {"blocks_token_only": blocks}, x)
        return out if run.shape == "reduced" else self._patches(out, state.unfold)

    def filled(self, out: Tensor, state: TokenState) -> Tensor:
        if not state.drops:
            return out
        return self._patches(out, lambda patches: state.unfold(state.fold(patches)))

    def head(self, run: Run, x: Any = None, **kwargs: Any) -> Any:
        state, pooling = run.last, self.pooling()
        if not state.changed or pooling == "token":
            return self.trunk.forward_head(x, **kwargs)
        if pooling == "avg":
            x = self._patches(x, lambda patches: weighted(patches, state, 0))
        else:
            x = self._patches(x, state.unfold)
        return self.trunk.forward_head(x, **kwargs)

    def _patches(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`x` with its patches changed, beside the class token, which a pruned trunk lacks."""
        first = int(self.trunk.num_prefix_tokens)
        return torch.cat([x[:, :first], change(x[:, first:])], dim=1)

    # Blocks

    def attend(self, block: Block, x: Tensor, attend: Attend) -> Tensor:
        return x + block.drop_path(block.gamma_1 * attend(block.attn, block.norm1(x)))

    def feed(self, block: Block, x: Tensor) -> Tensor:
        return x + block.drop_path(block.gamma_2 * block.mlp(block.norm2(x)))

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        """Softmax is over mixed logits, so log sizes come after the mixing. What mixes weights adds
        its own bias to each: to a token of size s, s times."""
        bias = attend.bias(x)
        if bias is None:
            return {}
        log_size = bias.permute(0, 2, 3, 1)
        others = (attend.state.sizes() - 1).to(x.dtype)[:, None, :, None]

        def mix_logits(logits: Tensor) -> Tensor:
            return attention.proj_l(logits) + log_size

        def mix_weights(weights: Tensor) -> Tensor:
            return attention.proj_w(weights) + others * attention.proj_w.bias

        return {"proj_l": mix_logits, "proj_w": mix_weights}


def _sized(block: Any, state: TokenState) -> Callable[[Tensor, Tensor], Tensor]:
    """A block of class attention over patches that count as often as their sizes."""

    def attention(x: Tensor) -> Tensor:
        bias = state.log_size(x)
        if bias is None:
            return block.attn(x)
        with adding(F.pad(bias, (1, 0))):
            return call(block.attn, {"fused_attn": True}, x)

    return lambda x, x_cls: call(block, {"attn": attention}, x, x_cls)
