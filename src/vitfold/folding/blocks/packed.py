"""Attention of images that each keep their own number of tokens: every image by itself."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks import within
from vitfold.folding.blocks.own import OwnAttend
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import additive


class PackedAttend(OwnAttend):
    """Attention over `[1, H, T, d]`: the tokens of all images, one after another."""

    state: Packed
    scores_tokens: ClassVar[bool] = False

    dense: Tensor | None = None
    """What a block adds to the logits of original tokens."""

    def join(self, bias: Tensor | None, x: Tensor) -> Tensor | None:
        """None: biases and log sizes are added image by image, in `Images`."""
        self.dense = bias
        return None

    def biased(self, mask: str = "attn_mask") -> bool:
        return False

    def _overrides(self, attention: Any, x: Tensor) -> dict[str, Any]:
        return {}

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.dense is not None:
            own = additive(self.dense, q.dtype)
            bias = own if bias is None else own + bias
        sizes = self.sizes(q) if self.proportional else None
        images = within.Images(self.state, sizes, bias, scale)
        attend = within.scored if self.scores_tokens else within.attend
        return attend(q, k, v, images)

    def _capture(self, attention: Any) -> dict[str, Any]:
        """No prefix of its own either: those of all images lie among the others."""
        return super()._capture(attention) | {"num_prefix_tokens": 0}


class ScoredPackedAttend(PackedAttend):
    """Packed attention that also gives the attention that each token received."""

    scores_tokens: ClassVar[bool] = True
